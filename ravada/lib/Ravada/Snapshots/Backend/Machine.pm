package Ravada::Snapshots::Backend::Machine;

# One machine, asked in two places: libvirt, which knows what there is, and the service, which acts.

use v5.36;

use Ravada::Snapshots::Error;

our $VERSION = '0.1.0';

# How long the question may take whether something is going on: it stands in the way of work that may have nothing to do
# with snapshots.
use constant GLANCE => (timeout => 3, connect_timeout => 2, attempts => 1);

sub new ($class, $hooks, $domain, $user = undef) {
    return bless { hooks => $hooks, domain => $domain, user => $user }, $class;
}

sub name ($self) {
    return $self->{domain}->name;
}

# Sys::Virt's object; nothing when libvirt does not have the machine.
sub libvirt ($self) {
    my $libvirt = eval { $self->{domain}->domain };
    return ref $libvirt ? $libvirt : undef;
}

sub uuid ($self) {
    my $libvirt = $self->libvirt or return;
    return lc $libvirt->get_uuid_string;
}

# How many snapshots libvirt has. When it does not answer nobody can tell, and then nothing may be done that destroys them.
sub count ($self) {
    my $libvirt = $self->libvirt or return 0;
    my $count = eval { $libvirt->num_of_snapshots };
    return $count if defined $count;
    my $error = $@;
    # No such domain.
    return 0 if "$error" =~ /\Alibvirt error code: 42\b/;
    die 'Cannot tell whether ' . $self->name . " has snapshots, because libvirt does not say: $error";
}

# Whether the service is doing something with the machine. When it cannot be asked: not that we know.
sub is_busy ($self) {
    my $uuid = $self->uuid // return 0;
    my $vm   = eval { $self->client([qw(read)], GLANCE)->vm($uuid) };
    return $vm->{activeOperation} ? 1 : 0 if $vm;
    my $error = $@;
    return 0 if Ravada::Snapshots::Error->is($error) && $error->code eq 'not_found';
    $self->{hooks}->alarm('cannot ask the service about ' . $self->name . ": $error");
    return 0;
}

sub client ($self, $actions, %options) {
    my $user = $self->{user};
    return $self->{hooks}->config->client(
        subject => (ref $user ? $user->name : undef) // 'rvd_back',
        vm      => $self->uuid,
        actions => $actions,
        %options,
    );
}

# Deletes every snapshot, protected ones too, and looks whether libvirt has none left.
sub purge ($self) {
    my $seconds = $self->{hooks}->config->get('wait_seconds');
    my $client  = $self->client([qw(read purge force)], patience => $seconds);
    my $operation = $client->purge($self->uuid, force => 1, allow_missing => 1);
    $client->wait($operation, timeout => $seconds) if $operation->{name};
    my $left = $self->count;
    die "The service has purged the snapshots of ${\$self->name}, and libvirt still has $left.\n" if $left;
    return;
}

# What the service would refuse, asked before anything is done.
sub can_purge ($self) {
    my $seconds = $self->{hooks}->config->get('wait_seconds');
    my $client  = $self->client([qw(read purge force)], patience => $seconds);
    $client->purge($self->uuid, force => 1, allow_missing => 1, validate_only => 1);
    return;
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend::Machine - a machine of Ravada's, its snapshots in libvirt, and the service for it

=head1 METHODS

=head2 new($hooks, $domain, $user)

For one of Ravada's KVM domain objects, on behalf of one of its users (C<rvd_back> when there is none).

=head2 name

Ravada's name of the machine.

=head2 libvirt

Its C<Sys::Virt::Domain>; undefined when libvirt has none.

=head2 uuid

libvirt's UUID.

=head2 count

How many snapshots libvirt has. Dies when libvirt does not say.

=head2 is_busy

Whether the service is changing the machine now. False, with a line in the log, when the service cannot be asked.

=head2 client(\@actions, %options)

A L<Ravada::Snapshots::Client> for this machine, with these actions alone.

=head2 purge

Deletes every snapshot and waits for the end. Dies when that fails, or when libvirt has any left.

=head2 can_purge

Dies with what C<purge> would be refused for, as far as that is known beforehand; changes nothing.

=cut
