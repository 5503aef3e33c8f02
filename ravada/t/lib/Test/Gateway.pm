package Test::Gateway;

# A small HTTP server that answers as it is told, in a process of its own, because the client blocks. It remembers what it was
# asked. It ends with its object.

use v5.36;

use File::Temp qw(tempfile);
use Mojo::IOLoop;
use Mojo::JSON qw(decode_json encode_json);
use Mojo::Server::Daemon;
use Mojolicious;

# The script is a list of answers, taken in turn; the last one stays. Each is a function of ($controller, $number).
sub start ($class, @script) {
    my ($log, $file) = tempfile(UNLINK => 1);
    pipe my $read, my $write or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        close $read;
        _serve($write, $file, @script);
        require POSIX;
        POSIX::_exit(0);
    }
    close $write;
    my $port = <$read> // die 'the server did not start';
    chomp $port;
    return bless { pid => $pid, owner => $$, port => $port, file => $file, log => $log }, $class;
}

sub url ($self) { return "http://127.0.0.1:$self->{port}" }

# What it was asked so far: hashes of method, path, headers, body (text) and json (where it is some).
sub asked ($self) {
    open my $in, '<', $self->{file} or die "$self->{file}: $!";
    my @all = map { decode_json($_) } <$in>;
    close $in;
    return @all;
}

sub stop ($self) {
    return if !$self->{pid} || $self->{owner} != $$;
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
    delete $self->{pid};
    return;
}

sub DESTROY ($self) {
    local ($., $@, $!, $?);
    $self->stop;
    return;
}

sub _serve ($ready, $file, @script) {
    local $SIG{TERM} = 'DEFAULT';
    my $app = Mojolicious->new(secrets => ['test']);
    $app->log->level('fatal');
    my $number = 0;
    open my $log, '>>', $file or die "$file: $!";
    $log->autoflush(1);
    $app->routes->any(
        '/*anything' => { anything => '' } => sub ($c) {
            my $body = $c->req->body;
            my $json = eval { decode_json(($c->req->headers->content_type // '') =~ /connect/ ? substr($body, 5) : $body) };
            print {$log} encode_json({
                method => $c->req->method, path => $c->req->url->path->to_string, query => $c->req->query_params->to_string,
                headers => $c->req->headers->to_hash, body => unpack('H*', $body), json => $json, call => ++$number,
            }), "\n";
            ($script[ $number - 1 ] // $script[-1])->($c, $number);
        }
    );
    my $daemon = Mojo::Server::Daemon->new(app => $app, listen => ['http://127.0.0.1'], silent => 1);
    $daemon->start;
    print {$ready} $daemon->ports->[0], "\n";
    close $ready;
    # The test that started us may die without a word.
    my $parent = getppid;
    Mojo::IOLoop->recurring(1 => sub { POSIX::_exit(0) if getppid != $parent });
    require POSIX;
    Mojo::IOLoop->start;
    return;
}

# Answers

sub ok ($class, $json) {
    return sub ($c, $) { $c->render(json => $json) };
}

sub refusal ($class, $status, $code, $reason, %more) {
    my @details = {
        type => 'google.rpc.ErrorInfo', value => '',
        debug => { reason => $reason, domain => 'snapshots.ravada', metadata => $more{metadata} // {} }
    };
    push @details, { type => 'google.rpc.RetryInfo', value => '', debug => { retryDelay => $more{retry} } } if $more{retry};
    my $error = { code => $code, message => $more{message} // "refused: $reason", details => \@details };
    return sub ($c, $) { $c->render(status => $status, json => $error) };
}

# Closes the connection without an answer.
sub hang_up ($class) {
    return sub ($c, $) {
        my $connection = $c->render_later->tx->connection;
        Mojo::IOLoop->next_tick(sub { Mojo::IOLoop->remove($connection) });
    };
}

# Never answers.
sub silence ($class) {
    return sub ($c, $) { $c->render_later; $c->inactivity_timeout(60); push our @kept, $c->tx };
}

# A stream of messages in Connect's envelopes. `cut` breaks it off instead of ending it.
sub stream ($class, $messages, %how) {
    return sub ($c, $) {
        $c->res->headers->content_type('application/connect+json');
        $c->render_later;
        my @frames = map { my $json = encode_json($_); pack('C N', 0, length $json) . $json } @$messages;
        push @frames, pack('C N', 2, 2) . '{}' if !$how{cut};
        my $tx = $c->tx;
        my $next;
        $next = sub ($c, @) {
            return $c->write_chunk(shift(@frames), $next) if @frames;
            return Mojo::IOLoop->remove($tx->connection) if $how{cut};
            $c->finish;
        };
        $next->($c);
    };
}

1;
