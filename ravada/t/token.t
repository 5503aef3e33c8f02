use v5.36;

# What is in a token, and what is never put into one. That the service believes it is shown in snapshots.t.

use Crypt::Digest::SHA256 qw(sha256_b64u);
use Crypt::JWT qw(decode_jwt);
use Crypt::PK::Ed25519;
use File::Temp qw(tempdir);
use Ravada::Snapshots::Token;
use Test::More;

my $folder = tempdir(CLEANUP => 1);
my $pair   = Crypt::PK::Ed25519->new->generate_key;
my $file   = "$folder/ravada.key";
write_file($file, $pair->export_key_pem('private'));

my $vm     = '6F0C2A4E-1111-4222-8333-444455556666';
my $tokens = Ravada::Snapshots::Token->new(issuer => 'ravada', kid => '2026', key => $file);

sub write_file ($path, $bytes) {
    open my $out, '>:raw', $path or die "$path: $!";
    print {$out} $bytes;
    close $out or die "$path: $!";
    return;
}

sub failure ($code) { return eval { $code->(); 1 } ? 'nothing' : "$@" }

my %what = (subject => 'alice', vm => $vm, actions => [qw(revert read)], now => 1_700_000_000.7);
my ($token, $secret, @more) = split /~/, $tokens->mint(%what);
is_deeply \@more, [], 'a token and its secret';
like $secret, qr/\A[\w-]{43}\z/, 'which is 32 bytes in base64url';
my ($header, $claims) = decode_jwt(
    token        => $token,
    key          => \$pair->export_key_pem('public'),
    accepted_alg => 'EdDSA',
    decode_header => 1, verify_exp => 0, verify_iat => 0,
);
is_deeply $header, { alg => 'EdDSA', kid => '2026', typ => 'JWT' }, 'the header says by which key';
my $jti = delete $claims->{jti};
is_deeply $claims,
    {
    iss => 'ravada', sub => 'alice', aud => 'ravada-snapshots', iat => 1_700_000_000, exp => 1_700_000_060,
    cnf => { 'secret#S256' => sha256_b64u($secret) },
    grants => [ { vm => lc $vm, actions => [qw(read revert)] } ],
    },
    'one machine, two actions, a minute';
isnt jti($tokens->mint(%what)), $jti, 'each token has an id of its own';
isnt +(split /~/, $tokens->mint(%what))[1], $secret, 'and a secret';

sub jti ($credential) {
    my ($token) = split /~/, $credential;
    return decode_jwt(token => $token, key => \$pair->export_key_pem('public'), verify_exp => 0)->{jti};
}

for my $case (
    [ 'all machines', vm => '*' ],
    [ 'no machine', vm => '' ],
    [ 'a name', vm => 'desk-1' ],
    [ 'two lines', vm => "$vm\n" ],
    [ 'no action', actions => [] ],
    [ 'admin', actions => [qw(read admin)] ],
    [ 'an action that there is not', actions => ['*'] ],
    [ 'no subject', subject => '' ],
    [ 'a subject with control characters', subject => "a\nb" ],
    [ 'a subject without end', subject => 'a' x 201 ],
    [ 'a longer life', seconds => 900 ],
) {
    my ($name, %wrong) = @$case;
    isnt failure(sub { $tokens->mint(%what, %wrong) }), 'nothing', "never minted: $name";
}

for my $seconds (0, 61, -1, '1e9', 'x') {
    like failure(sub { Ravada::Snapshots::Token->new(issuer => 'i', kid => 'k', key => $file, seconds => $seconds) }),
        qr/from 1 to 60 seconds/, "no life of $seconds seconds";
}

write_file("$folder/public.pem", $pair->export_key_pem('public'));
write_file("$folder/garbage",    "SECRET-BYTES\n");
for my $bad (qw(public.pem garbage none)) {
    my $error = failure(sub { Ravada::Snapshots::Token->new(issuer => 'i', kid => 'k', key => "$folder/$bad") });
    like $error, qr{\Q$folder/$bad\E: not a readable Ed25519 private key}, "$bad is no private key";
    unlike $error, qr/SECRET/, 'and is not quoted';
}

done_testing;
