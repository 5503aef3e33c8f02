package Ravada::Snapshots::Connect;

use v5.36;

use Carp qw(croak);
use Mojo::JSON qw(decode_json encode_json);
use Mojo::URL;
use Mojo::UserAgent;
use Ravada::Snapshots::Error;

our $VERSION = '0.1.0';

# A message in a stream: a byte of flags and four of length go before it. This flag ends the stream.
use constant { ENVELOPE => 5, END_OF_STREAM => 2 };

my %OPTIONS = (
    url             => undef,
    token           => undef,
    ca              => undef,
    cert            => undef,
    key             => undef,
    timeout         => 20,
    connect_timeout => 5,
);

sub new ($class, %options) {
    for my $name (keys %options) {
        croak "unknown option $name" if !exists $OPTIONS{$name};
    }
    my $self = bless { %OPTIONS, %options }, $class;
    for my $name (qw(url token)) {
        croak "$name is required" if !defined $self->{$name};
    }
    $self->{url} =~ s{/+\z}{};
    return $self;
}

sub call ($self, $service, $method, $request) {
    my $tx = $self->_ua($self->{timeout})
        ->post($self->_url($service, $method), $self->_headers('application/json'), encode_json($request));
    _check_transport($tx);
    my ($status, $said) = ($tx->res->code, $tx->res->message // '');
    my $body = _json($tx->res->body);
    die Ravada::Snapshots::Error->from_status($status, $said) if ref $body ne 'HASH';
    return $body if $status == 200;
    die Ravada::Snapshots::Error->from_status($status, $said) if !defined $body->{code};
    die Ravada::Snapshots::Error->from_connect($body, $status);
}

sub has_token_source ($self) { return ref $self->{token} eq 'CODE' }

sub stream ($self, $service, $method, $request, $seconds, $news) {
    my $json = encode_json($request);
    my $ua   = $self->_ua($seconds);
    my $tx   = $ua->build_tx(
        POST => $self->_url($service, $method),
        $self->_headers('application/connect+json'), pack('C N', 0, length $json) . $json
    );
    my $buffer = '';
    $tx->res->content->unsubscribe('read')->on(
        read => sub ($content, $bytes) {
            $buffer .= $bytes;
            while (length $buffer >= ENVELOPE) {
                my ($flags, $length) = unpack 'C N', $buffer;
                last if length $buffer < ENVELOPE + $length;
                my $message = _json(substr $buffer, ENVELOPE, $length);
                substr $buffer, 0, ENVELOPE + $length, '';
                $news->($message) if !($flags & END_OF_STREAM) && ref $message eq 'HASH';
            }
        }
    );
    $ua->start($tx);
    return;
}

# A user agent of the process's own: the back end forks, and two processes must not share a connection.
sub _ua ($self, $seconds) {
    delete $self->{ua} if ($self->{pid} // 0) != $$;
    $self->{pid} = $$;
    my $ua = $self->{ua} //= do {
        my $new = Mojo::UserAgent->new(max_redirects => 0, connect_timeout => $self->{connect_timeout});
        $new->cookie_jar->ignore(sub { 1 });
        $new->$_($self->{$_}) for grep { defined $self->{$_} } qw(ca cert key);
        # The service is named in the configuration; a proxy of the environment is not part of it.
        $new->proxy->http(undef)->https(undef);
        $new;
    };
    return $ua->request_timeout($seconds)->inactivity_timeout($seconds);
}

sub _url ($self, $service, $method) {
    return Mojo::URL->new("$self->{url}/$service/$method");
}

sub _headers ($self, $type) {
    my $token = ref $self->{token} eq 'CODE' ? $self->{token}->() : $self->{token};
    return {
        'Authorization'            => "Bearer $token",
        'Content-Type'             => $type,
        'Connect-Protocol-Version' => '1',
        'Accept-Encoding'          => 'identity',
    };
}

sub _check_transport ($tx) {
    my $error = $tx->error;
    return if !$error || defined $error->{code};
    my $message = $error->{message} // 'unknown';
    die Ravada::Snapshots::Error->transport($message) if $message !~ /time-?out/i || $message =~ /\AConnect timeout/i;
    die Ravada::Snapshots::Error->new(
        code      => 'deadline_exceeded',
        reason    => 'DEADLINE_EXCEEDED',
        message   => 'the snapshot service did not answer in time',
        retryable => 1,
    );
}

sub _json ($bytes) {
    return eval { decode_json($bytes) };
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Connect - one call of the service, by the Connect protocol

=head1 DESCRIPTION

What L<Ravada::Snapshots::Client> is made on: JSON over HTTP, one attempt, errors as L<Ravada::Snapshots::Error>.

=head1 METHODS

=head2 new(%options)

C<url>, C<token>, C<ca>, C<cert>, C<key>, C<timeout> and C<connect_timeout>, as in the client.

=head2 call($service, $method, \%request)

One POST; returns the answer.

=head2 has_token_source

Whether C<token> is a function, which may answer with another token when it is asked again.

=head2 stream($service, $method, \%request, $seconds, $news)

Calls C<$news> with each message until the stream ends, breaks, or has taken so many seconds. Which of these it was is not told.

=cut
