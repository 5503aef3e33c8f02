package Ravada::Snapshots::Config;

use v5.36;

use Carp qw(croak);
use Ravada::Snapshots::Client;
use Ravada::Snapshots::Token;

our $VERSION = '0.1.0';

use constant DEFAULT_FILE => '/etc/ravada-snapshots/ravada.conf';

my %DEFAULT = (
    gateway          => 'http://127.0.0.1:7480',
    ca               => undef,
    cert             => undef,
    key              => undef,
    issuer           => 'ravada',
    kid              => undef,
    token_key        => undef,
    token_seconds    => 60,
    path             => '/snapshots-api',
    while_snapshots  => 'refuse',
    when_unreachable => 'refuse',
    wait_seconds     => 300,
    keep_swap        => 'yes',
);
my %CHOICES = (
    while_snapshots  => [qw(refuse purge)],
    when_unreachable => [qw(refuse allow)],
    keep_swap        => [qw(yes no)],
);

sub load ($class, %options) {
    my $file = delete $options{file} // $ENV{RAVADA_SNAPSHOTS_CONF} // DEFAULT_FILE;
    my %read = -e $file ? _read($file) : ();
    return $class->new(%read, %options);
}

sub new ($class, %options) {
    for my $name (sort keys %options) {
        croak "unknown setting '$name'; there are: " . join ', ', sort keys %DEFAULT if !exists $DEFAULT{$name};
        my $choices = $CHOICES{$name} or next;
        croak "$name is one of " . join(', ', @$choices) . ", not '$options{$name}'"
            if !grep { $_ eq $options{$name} } @$choices;
    }
    my $self = bless { %DEFAULT, %options }, $class;
    for my $name (qw(kid token_key)) {
        croak "the setting '$name' is missing" if !defined $self->{$name};
    }
    croak "wait_seconds is a number of seconds, not '$self->{wait_seconds}'" if $self->{wait_seconds} !~ /\A[0-9.]+\z/;
    croak "path is like /snapshots-api, not '$self->{path}'"                 if $self->{path} !~ m{\A(?:/[\w.-]+)+\z};
    return $self;
}

sub get ($self, $name) {
    croak "unknown setting '$name'" if !exists $DEFAULT{$name};
    return $self->{$name};
}

# Read when it is first used and not before: a process that only starts must not need it.
sub tokens ($self) {
    return $self->{_tokens} //= Ravada::Snapshots::Token->new(
        issuer  => $self->{issuer},
        kid     => $self->{kid},
        key     => $self->{token_key},
        seconds => $self->{token_seconds},
    );
}

sub client ($self, %who) {
    my ($subject, $vm, $actions, %options) = (delete @who{qw(subject vm actions)}, %who);
    return Ravada::Snapshots::Client->new(
        url   => $self->{gateway},
        token => sub { $self->tokens->mint(subject => $subject, vm => $vm, actions => $actions) },
        (map { $_ => $self->{$_} } grep { defined $self->{$_} } qw(ca cert key)),
        %options,
    );
}

# One setting a line, "name = value"; what follows a # at the begin of a line is for people.
sub _read ($file) {
    open my $in, '<:encoding(UTF-8)', $file or croak "$file: $!";
    my %read;
    while (my $line = <$in>) {
        next if $line =~ /\A\s*(?:#|\z)/;
        my ($name, $value) = $line =~ /\A\s*(\w+)\s*=\s*(.*?)\s*\z/
            or croak "$file, line $.: not of the form 'name = value'";
        croak "$file, line $.: $name is there twice" if exists $read{$name};
        $read{$name} = $value;
    }
    close $in or croak "$file: $!";
    return %read;
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Config - where the service is, and what Ravada does while a machine has snapshots

=head1 SYNOPSIS

    # /etc/ravada-snapshots/ravada.conf
    gateway   = http://127.0.0.1:7480
    issuer    = ravada
    kid       = 2026
    token_key = /etc/ravada-snapshots/ravada.key

=head1 DESCRIPTION

One file for the front end and the back end, C<name = value> a line. Another place is named by the environment variable
C<RAVADA_SNAPSHOTS_CONF>.

=over

=item gateway

Address of the gateway: C<http://127.0.0.1:7480>.

=item ca, cert, key

For a gateway with TLS: who signed its certificate, and a certificate and key of our own. Files in PEM.

=item issuer, kid, token_key

By which key tokens are signed: its issuer's name (C<ravada>), its C<kid>, and the file. The last two are required.

=item token_seconds

How long a token lives: 1 to 60.

=item path

Where the front end serves the gateway on its own origin: C</snapshots-api>.

=item while_snapshots

What happens to a spinoff, a new base and all else that would destroy snapshots without a word: C<refuse>, or C<purge> them
first.

=item when_unreachable

Whether a machine with snapshots may be removed while the service cannot be reached: C<refuse>, or C<allow>, which leaves what
the service knows of it to the agent's clean-up.

=item wait_seconds

How long the back end waits for the service to finish: 300.

=item keep_swap

Whether SWAP volumes are kept as they are at a start while there are snapshots (C<yes>). Ravada makes them anew at each start
otherwise, and with that breaks every snapshot of the machine.

=back

=head1 METHODS

=head2 load(file => $file, %settings)

Reads the file, if it is there; settings given here come before it.

=head2 new(%settings)

From settings alone. Dies when one is unknown or wrong.

=head2 get($name)

One setting.

=head2 tokens

The L<Ravada::Snapshots::Token> for the key.

=head2 client(subject => $user, vm => $uuid, actions => \@actions, %options)

A L<Ravada::Snapshots::Client> that acts for this user on this machine, and can do nothing else. C<%options> are the client's.

=cut
