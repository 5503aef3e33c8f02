package Ravada::Snapshots::Backend::Removal;

# Removing a machine. Ravada checks the permission, switches the machine off, undefines it in libvirt, and unlinks its disks.
#
# 1. Before anything is switched off: would the purge be refused? Then so is the removal, and the machine runs on.
# 2. When Ravada undefines the machine, which is after its own checks and before it unlinks anything: purge. If that fails
#    the call fails, and with it the removal; libvirt has the machine as before, and the disks are there.
#
# What is asked in 1 may be otherwise in 2, so 2 is what counts.

use v5.36;

use Ravada::Snapshots::Error;

our $VERSION = '0.1.0';

use constant {
    KVM     => 'Ravada::Domain::KVM',
    LIBVIRT => 'Sys::Virt::Domain',
    # virDomainUndefineFlagsValues
    UNDEFINE_SNAPSHOTS_METADATA => 2,
};

# The machine that is being removed. Ravada undefines at other times, too: those are not for us.
our $REMOVING;

sub hooks ($class, $hooks) {
    return (
        [ before => 'Ravada', remove_domain => sub ($ravada, %request) { _look_ahead($hooks, $ravada, %request) } ],
        [ around => KVM, remove => sub ($next, $domain, $user = undef, @rest) {
                local $REMOVING = $hooks->machine($domain, $user);
                _check($hooks, $REMOVING) if _may($user, $domain);
                return $domain->$next($user, @rest);
            }
        ],
        [ around => LIBVIRT, undefine => sub ($next, $libvirt, $flags = 0) {
                $flags = _purge($hooks, $REMOVING, $flags) if $REMOVING && _same($REMOVING, $libvirt);
                return $libvirt->$next($flags);
            }
        ],
    );
}

# Ravada switches the machine off here, before its own remove begins. It answers by itself to a user who may not, and to a
# machine that there is not.
sub _look_ahead ($hooks, $ravada, %request) {
    my $user   = eval { Ravada::Auth::SQL->search_by_id($request{uid}) } or return;
    my $domain = eval { $ravada->search_domain($request{name}) }         or return;
    return if !$domain->isa(KVM) || !_may($user, $domain);
    _check($hooks, $hooks->machine($domain, $user));
    return;
}

sub _may ($user, $domain) {
    return ref $user && eval { $user->can_remove_machine($domain) } ? 1 : 0;
}

sub _same ($machine, $libvirt) {
    my $uuid = eval { $machine->uuid } // return 0;
    return $uuid eq lc $libvirt->get_uuid_string ? 1 : 0;
}

sub _check ($hooks, $machine) {
    return if !$machine->count;
    eval { $machine->can_purge; 1 } and return;
    my $error = $@;
    die _sentence($machine, $error) if !_may_go_without($hooks, $error);
    return;
}

# The flags to undefine with, when there is nothing in the way. Where the service is away and the administrator has decided
# that this does not matter, libvirt's records go with the machine, internal snapshots with the disks, and the agent tells the
# service that the machine is gone.
sub _purge ($hooks, $machine, $flags) {
    return $flags if !$machine->count && !$machine->is_busy;
    eval { $machine->purge; 1 } and return $flags;
    my $error = $@;
    die _sentence($machine, $error) if !_may_go_without($hooks, $error);
    $hooks->alarm('removing ' . $machine->name . " with its snapshots, without the service: $error");
    return $flags | UNDEFINE_SNAPSHOTS_METADATA;
}

sub _may_go_without ($hooks, $error) {
    return 0 if (eval { $hooks->config->get('when_unreachable') } // 'refuse') ne 'allow';
    return Ravada::Snapshots::Error->is($error) && $error->code =~ /\A(?:unavailable|deadline_exceeded)\z/ ? 1 : 0;
}

sub _sentence ($machine, $error) {
    my $text = "$error" =~ s/\s+\z//r;
    return $machine->name . " was not removed, because its snapshots could not be: $text\n";
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend::Removal - a machine's snapshots go before the machine

=head1 FUNCTIONS

=head2 hooks($hooks)

What is to be wrapped: a list of C<[kind, class, method, code]>.

=cut
