package Mojolicious::Plugin::RavadaSnapshots::Proxy;

# The gateway under Ravada's own origin: what the page needs, and nothing else of the gateway. Answers are passed on as they
# come, because a watch is an answer that never ends.

use v5.36;

use Mojo::IOLoop;
use Mojo::UserAgent;

our $VERSION = '0.1.0';

# The services of the page and of scripts with a user's token. Hosts, health and reflection are not for here.
my $CALL = qr{\Aravada\.snapshot\.v1\.(?:SnapshotService|OperationService)/(\w+)\z};
# The element, and the parts that it loads when they are needed: named by what is in them, such as `ca-QK5TN3ZV.js`.
my $FILE = qr{\A(?:element\.(?:js|css)|[a-zA-Z-]{2,12}-[A-Z0-9]{8}\.js)\z};

# What the gateway has to know of a request. All else, the session's cookie before all, stays here.
my @REQUEST_HEADERS = qw(
    Accept Accept-Encoding Authorization Connect-Accept-Encoding Connect-Content-Encoding Connect-Protocol-Version
    Connect-Timeout-Ms Content-Type Grpc-Timeout If-None-Match User-Agent X-Grpc-Web X-User-Agent
);

my @ANSWER_HEADERS = qw(
    Cache-Control Connect-Accept-Encoding Connect-Content-Encoding Content-Encoding Content-Type ETag Grpc-Message
    Grpc-Status Retry-After Vary X-Content-Type-Options
);

# Calls that a page makes without its user.
my $BACKGROUND = qr{/(?:Get|List|Watch)\w*\z};

# A watch may be silent for as long as nothing changes.
use constant SILENCE => 3600;
use constant LARGEST => 64 * 1024;

sub new ($class, $config) {
    return bless { config => $config }, $class;
}

# Which call or file a path under ours stands for, with the HTTP method that goes with it; nothing for what is not served.
sub target ($self, $path) {
    return (POST => $path) if $path =~ $CALL;
    return (GET  => $path) if $path =~ $FILE;
    return;
}

sub serve ($self, $c, $path) {
    my ($method, $target) = $self->target($path);
    my $asked = $c->req->method;
    return $c->reply->not_found if !$method || $asked ne $method && !($asked eq 'HEAD' && $method eq 'GET');
    return $c->rendered(413) if length $c->req->body > LARGEST;

    # What a page does by itself in the background must not keep a session alive that its user has left.
    delete @{ $c->stash }{qw(mojo.session mojo.active_session)} if $target =~ $BACKGROUND;
    $c->render_later;
    $c->inactivity_timeout(SILENCE);
    my $ua   = $self->_ua;
    my $tx   = $ua->build_tx($asked => $self->_url($c, $target) => $self->_headers($c) => $c->req->body);
    my $back = { started => 0 };
    $tx->res->content->auto_upgrade(0)->auto_decompress(0)->once(body => sub ($in) { _begin($c, $tx, $back) });

    # A browser that goes away must not leave a watch behind it.
    my $closed = 0;
    $c->tx->on(
        finish => sub {
            $closed = 1;
            Mojo::IOLoop->remove($tx->connection) if defined $tx->connection && !$tx->is_finished;
        }
    );
    $ua->start($tx => sub ($ua, $tx) { _end($c, $tx, $back) if !$closed });
    return;
}

# The gateway's answer begins: its head goes on at once, and from now on each piece as it comes.
sub _begin ($c, $tx, $back) {
    my ($in, $out) = ($tx->res, $c->res);
    $out->code($in->code);
    for my $name (@ANSWER_HEADERS) {
        my $value = $in->headers->header($name);
        $out->headers->header($name => $value) if defined $value;
    }
    # A reverse proxy in front is asked not to hold back what a watch tells.
    $out->headers->header('X-Accel-Buffering' => 'no');
    my $known = $in->headers->content_length;
    my $write = defined $known ? 'write' : 'write_chunk';
    $out->headers->content_length($known) if defined $known;
    $back->{started} = 1;
    return if $in->is_empty || $c->req->method eq 'HEAD' || defined $known && $known == 0;

    my ($from, $to) = map { Mojo::IOLoop->stream($_) } $tx->connection, $c->tx->connection;
    $in->content->unsubscribe('read')->on(
        read => sub ($content, $bytes) {
            $c->$write($bytes) if length $bytes;
            return if !$from || !$to || $to->can_write;
            # The browser reads more slowly than the gateway writes.
            $from->stop;
            $to->once(drain => sub { $from->start });
        }
    );
    # The head alone, so that a watch of a machine where nothing happens is seen to be open.
    $c->$write if !defined $known;
    return;
}

sub _end ($c, $tx, $back) {
    if (!$back->{started}) {
        my $error = $tx->error // { message => 'no answer' };
        $c->app->log->error("snapshots: the gateway cannot be reached: $error->{message}");
        return $c->render(
            status => 502,
            json   => {
                code    => 'unavailable',
                message => 'the snapshot service cannot be reached at the moment',
                details => [ { type => 'google.rpc.ErrorInfo', debug => { reason => 'API_UNAVAILABLE', domain => 'snapshots.ravada' } } ],
            }
        );
    }
    my $known = $c->res->headers->content_length;
    return $c->rendered if $c->req->method eq 'HEAD' || $c->res->is_empty || defined $known && $known == 0;
    return $c->finish;
}

sub _url ($self, $c, $target) {
    return Mojo::URL->new($self->{config}->get('gateway') . "/$target")->query($c->req->query_params->clone);
}

sub _headers ($self, $c) {
    my $from = $c->req->headers;
    my %headers = map { $_ => $from->header($_) } grep { defined $from->header($_) } @REQUEST_HEADERS;
    $headers{'X-Forwarded-For'} = $c->tx->remote_address if defined $c->tx->remote_address;
    return \%headers;
}

# Not the application's: that one keeps the cookies of all users in one jar.
sub _ua ($self) {
    delete $self->{ua} if ($self->{pid} // 0) != $$;
    $self->{pid} = $$;
    return $self->{ua} //= do {
        my $config = $self->{config};
        my $ua     = Mojo::UserAgent->new(
            connect_timeout    => 5,
            inactivity_timeout => 0,
            request_timeout    => 0,
            max_redirects      => 0,
            max_connections    => 100,
        );
        $ua->cookie_jar->ignore(sub { 1 });
        $ua->proxy->http(undef)->https(undef);
        $ua->$_($config->get($_)) for grep { defined $config->get($_) } qw(ca cert key);
        $ua;
    };
}

1;

__END__

=encoding utf8

=head1 NAME

Mojolicious::Plugin::RavadaSnapshots::Proxy - the gateway under Ravada's own origin

=head1 METHODS

=head2 new($config)

For the gateway of a L<Ravada::Snapshots::Config>.

=head2 target($path)

The HTTP method and path of what may be asked of the gateway: the calls of SnapshotService and OperationService, and the
element's two files. Nothing for anything else.

=head2 serve($controller, $path)

Passes the request on and the answer back, as it comes. Cookies go neither way.

=cut
