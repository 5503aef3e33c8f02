package Ravada::Snapshots::Token;

use v5.36;

use Carp qw(croak);
use Crypt::Digest::SHA256 qw(sha256_b64u);
use Crypt::JWT qw(encode_jwt);
use Crypt::PK::Ed25519;
use Crypt::PRNG qw(random_bytes random_bytes_b64u);

our $VERSION = '0.1.0';

use constant {
    AUDIENCE     => 'ravada-snapshots',
    MAX_SECONDS  => 60,
    SECRET_BYTES => 32,
};

# "admin" is not among them: Ravada administers machines one by one, never the hosts.
my %ACTION = map { $_ => 1 } qw(read create update revert delete purge force);

my $UUID = qr/\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\z/;

sub new ($class, %options) {
    my ($issuer, $kid, $file) = map { delete $options{$_} // croak "$_ is required" } qw(issuer kid key);
    my $seconds = delete $options{seconds} // MAX_SECONDS;
    croak 'unknown: ' . join ', ', sort keys %options if %options;
    croak "a token lives from 1 to ${\MAX_SECONDS} seconds, not $seconds"
        if $seconds !~ /\A\d+\z/ || $seconds < 1 || $seconds > MAX_SECONDS;

    # CryptX's own words may quote what it was given; the file's name is enough to find what is wrong.
    my $key = eval { Crypt::PK::Ed25519->new($file) };
    croak "$file: not a readable Ed25519 private key (PKCS#8, PEM)" if !$key || !$key->is_private;
    return bless { issuer => $issuer, kid => $kid, key => $key, seconds => $seconds }, $class;
}

sub mint ($self, %wanted) {
    my ($subject, $vm, $actions) = map { delete $wanted{$_} // croak "$_ is required" } qw(subject vm actions);
    my $now = int(delete $wanted{now} // time);
    croak 'unknown: ' . join ', ', sort keys %wanted if %wanted;

    $vm = lc $vm;
    croak "'$vm' is not a machine's UUID" if $vm !~ $UUID;
    croak 'a token without actions is of no use' if !@$actions;
    for my $action (@$actions) {
        croak "'$action' is not an action that Ravada may grant" if !$ACTION{$action};
    }
    croak 'the subject is empty, too long, or has control characters'
        if $subject !~ /\A[^\p{Cc}]{1,200}\z/;

    # What the service sends on to a host is the token alone, and without the secret nobody takes it at the service.
    my $secret = random_bytes_b64u(SECRET_BYTES);
    my $token  = encode_jwt(
        payload => {
            iss    => $self->{issuer},
            sub    => $subject,
            aud    => AUDIENCE,
            jti    => unpack('H*', random_bytes(16)),
            iat    => $now,
            exp    => $now + $self->{seconds},
            cnf    => { 'secret#S256' => sha256_b64u($secret) },
            grants => [ { vm => $vm, actions => [ sort @$actions ] } ],
        },
        alg           => 'EdDSA',
        key           => $self->{key},
        extra_headers => { kid => $self->{kid}, typ => 'JWT' },
    );
    return "$token~$secret";
}

sub seconds ($self) { return $self->{seconds} }

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Token - tokens for one machine and a minute at most

=head1 SYNOPSIS

    my $tokens = Ravada::Snapshots::Token->new(
        issuer => 'ravada', kid => '2026', key => '/etc/ravada-snapshots/ravada.key');
    my $token = $tokens->mint(subject => 'alice', vm => $uuid, actions => [qw(read create)]);

=head1 DESCRIPTION

The service believes whoever holds the issuer's private key, within the ceiling that its configuration gives the issuer.
So what is minted here is as little as will do: one machine, named actions, a short life.

=head1 METHODS

=head2 new(issuer => $name, kid => $id, key => $file, seconds => $life)

Reads the private key that C<snapshot-api token create-key> has made (Ed25519, PKCS#8, PEM). C<seconds> is 1 to 60, by
default 60. Dies when the key cannot be used; the message never quotes it.

=head2 mint(subject => $user, vm => $uuid, actions => \@actions)

A signed JWT, a C<~>, and the secret that the JWT is bound to; the C<cnf> claim has the secret's SHA-256. The service takes both
together, to be sent as they are: C<Authorization: Bearer JWT~secret>. It is for exactly this machine and these actions out of C<read>, C<create>, C<update>, C<revert>, C<delete>, C<purge>, C<force>.
Dies when an argument is none of those.

=head2 seconds

How long its tokens live.

=cut
