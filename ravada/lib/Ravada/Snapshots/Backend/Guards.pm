package Ravada::Snapshots::Backend::Guards;

# What Ravada does to a machine's disks without libvirt, and what libvirt lets it do, destroys snapshots while libvirt goes
# on listing them. Each of these asks first.

use v5.36;

our $VERSION = '0.1.0';

use constant KVM => 'Ravada::Domain::KVM';

# Ravada's method, and what it would be to its user.
my %WHOLE = (
    spinoff        => 'a spinoff',
    prepare_base   => 'making it a base',
    rebase         => 'another base',
    restore        => 'restoring it to its base',
    compact        => 'compacting its disks',
    migrate        => 'moving it to another node',
    restore_backup => 'restoring a backup',
);
my %HARDWARE = (
    set_controller    => 'adding a disk',
    remove_controller => 'removing a disk',
    change_hardware   => 'changing a disk',
);

sub hooks ($class, $hooks) {
    my @all;
    for my $method (sort keys %WHOLE) {
        push @all, [ before => KVM, $method => sub ($domain, @) { guard($hooks, $domain, $WHOLE{$method}) } ];
    }
    for my $method (sort keys %HARDWARE) {
        push @all, [
            before => KVM,
            $method => sub ($domain, $hardware = '', $index = undef, @) {
                return if $hardware ne 'disk' || _is_medium($domain, $method, $index);
                guard($hooks, $domain, $HARDWARE{$method});
            }
        ];
    }
    push @all, [ around => KVM, clean_swap_volumes => sub ($next, $domain, @rest) { _swap($hooks, $next, $domain, @rest) } ];
    return @all;
}

sub guard ($hooks, $domain, $what) {
    my $machine = $hooks->machine($domain);
    my $count   = $machine->count;
    if ($count == 0) {
        die 'A snapshot of ' . $machine->name . " is being made or used now. Wait for its end before $what.\n"
            if $machine->is_busy;
        return;
    }
    my $name   = $machine->name;
    my $policy = eval { $hooks->config->get('while_snapshots') } // 'refuse';
    my ($has, $them, $they) = $count == 1 ? ('1 snapshot', 'it', 'It') : ("$count snapshots", 'them', 'They');
    die "$name has $has, and $what would destroy $them. Remove $them first.\n" if $policy eq 'refuse';
    eval { $machine->purge; 1 }
        or die "$name has $has, and $what would destroy $them. $they could not be removed: " . _sentence($@) . "\n";
    return;
}

# A medium in a drive is not part of a snapshot, and changing it is everyday work.
sub _is_medium ($domain, $method, $index) {
    return 0 if $method eq 'set_controller' || !defined $index;
    my @volumes = eval { $domain->list_volumes_info };
    my $volume  = $volumes[$index] // return 0;
    my $info    = eval { $volume->info } // {};
    return ($info->{device} // '') eq 'cdrom' ? 1 : 0;
}

# Ravada makes SWAP volumes anew at each start. That takes a disk out of every snapshot of the machine, and libvirt refuses
# to go back to one from then on.
sub _swap ($hooks, $next, $domain, @rest) {
    my $keep = eval { $hooks->config->get('keep_swap') } // 'yes';
    if ($keep eq 'yes') {
        my $count = eval { $hooks->machine($domain)->count };
        return if !defined $count || $count;
    }
    return $domain->$next(@rest);
}

sub _sentence ($error) {
    my $text = "$error";
    $text =~ s/\s+\z//;
    return $text;
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend::Guards - what must not happen to a machine that has snapshots

=head1 FUNCTIONS

=head2 hooks($hooks)

What is to be wrapped: a list of C<[kind, class, method, code]>.

=head2 guard($hooks, $domain, $what)

Returns when the machine has no snapshots and the service is not about to make one; by C<while_snapshots = purge> purges them.
Dies otherwise, with a sentence for the user. When libvirt does not say how many there are, it dies. When the service cannot be
reached and there are none, it returns.

=cut
