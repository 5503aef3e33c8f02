package Mojolicious::Plugin::RavadaSnapshots::Access;

# Who may do what to which machine, by Ravada's own methods and nothing of ours. Two questions: what may this user do (a
# list of actions), and can this machine have snapshots at all (a refusal, or nothing).

use v5.36;

our $VERSION = '0.1.0';

# What is refused, with the HTTP status, whether it passes by itself, and the sentence for the user.
my %REFUSAL = (
    VM_NOT_FOUND       => [ 404, 0, 'There is no such machine.' ],
    ACTION_NOT_GRANTED => [ 403, 0, 'You may not use the snapshots of this machine.' ],
    VM_NOT_KVM         => [ 409, 0, 'Only KVM machines can have snapshots.' ],
    VM_IS_BASE => [ 409, 0, 'This machine is a base: clones are made from its disks, so they must not change.' ],
    VM_TRANSIENT => [ 409, 0, 'This machine is volatile: it vanishes when it stops, and its snapshots would, too.' ],
    VM_HIBERNATED => [ 409, 0, 'This machine is hibernated. Start it first.' ],
    VM_BUSY       => [ 409, 1, 'Ravada is working on this machine. Wait a moment.' ],
    VM_NO_UUID    => [ 409, 1, 'Ravada does not know this machine in libvirt yet. Start it once.' ],
    SIGNED_OUT    => [ 401, 0, 'Your session is over. Log in again.' ],
    NOT_SAME_ORIGIN => [ 403, 0, 'The request did not come from a page of this site.' ],
    UNAVAILABLE   => [ 503, 1, 'Snapshots are not available now. The administrator finds the reason in the log.' ],
);

sub refusal ($reason) {
    my ($status, $retryable, $message) = @{ $REFUSAL{$reason} // $REFUSAL{UNAVAILABLE} };
    return { status => $status, reason => $reason, retryable => $retryable, message => $message };
}

# As can be asked of a machine's record, without its present state: whether the tab makes sense.
sub never ($domain) {
    return 'VM_NOT_KVM'   if $domain->type ne 'KVM';
    return 'VM_IS_BASE'   if $domain->is_base;
    return 'VM_TRANSIENT' if $domain->is_volatile;
    return;
}

sub now ($domain) {
    my $never = never($domain);
    return $never          if $never;
    return 'VM_HIBERNATED' if $domain->is_hibernated;
    return 'VM_BUSY'       if $domain->is_locked;
    return;
}

# A user with whom a machine is shared may change its settings and shut it down, so also take snapshots and revert; what
# is taken from the owner for good stays with the owner.
sub actions ($user, $domain) {
    my $id = $domain->id;
    return () if !$user->can_change_settings($id);
    my @actions = qw(read create update);
    push @actions, 'revert' if $user->can_shutdown_machine($domain);
    push @actions, 'delete' if $user->is_admin || $domain->id_owner == $user->id;
    push @actions, 'force'  if $user->is_admin;
    return @actions;
}

# The front end knows a machine's UUID from the definition that the back end keeps of it.
sub uuid ($dbh, $id) {
    my ($xml) = $dbh->selectrow_array('SELECT xml FROM domains_kvm WHERE id_domain=?', undef, $id);
    my ($uuid) = ($xml // '') =~ m{<uuid>\s*([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\s*</uuid>};
    return defined $uuid ? lc $uuid : undef;
}

1;

__END__

=encoding utf8

=head1 NAME

Mojolicious::Plugin::RavadaSnapshots::Access - who may do what to which machine, by Ravada's own permissions

=head1 FUNCTIONS

=head2 actions($user, $domain)

What the user may do to the machine's snapshots, as actions of a token: C<read>, C<create> and C<update> with
C<can_change_settings>, C<revert> with C<can_shutdown_machine> besides, C<delete> as an administrator or the owner, C<force>
(which deletes protected ones) as an administrator. Empty when
the user may not change its settings.

=head2 never($domain)

Why a machine can have no snapshots at all: C<VM_NOT_KVM>, C<VM_IS_BASE>, C<VM_TRANSIENT>; nothing when it can.

=head2 now($domain)

The same, or why it cannot be worked with now: C<VM_HIBERNATED>, C<VM_BUSY>.

=head2 uuid($dbh, $id)

The machine's UUID in libvirt, undefined when Ravada does not know it.

=head2 refusal($reason)

A reason's HTTP C<status>, C<message>, and whether it is C<retryable>.

=cut
