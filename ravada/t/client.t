use v5.36;

# The client against a server that fails as it is told to: what is repeated, what is not, and what the caller sees.

use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Test::Gateway;
use Ravada::Snapshots::Client;
use Time::HiRes qw(time);

my $vm       = '6f0c2a4e-1111-4222-8333-444455556666';
my $snapshot = "vms/$vm/snapshots/snap-1";
my $uuid     = qr/\A[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\z/;

sub client ($server, %options) {
    return Ravada::Snapshots::Client->new(url => $server->url, token => 't', timeout => 5, %options);
}

sub failure ($code) {
    return eval { $code->(); 1 } ? undef : $@;
}

sub operation ($state, %more) { return { name => 'operations/1', state => "OPERATION_STATE_$state", %more } }

subtest 'what is sent' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok({}));
    my $client = client($server, url => $server->url . '/', token => sub { 'minted' });
    $client->vm(uc $vm);
    $client->create("vms/$vm", name => "r\x{e9}sum\x{e9}", description => 'd', content => 'memory', protected => 1);
    $client->update($snapshot, name => 'n', protected => 0);
    $client->revert($snapshot, save_current => 1, run_after => 'off', request_id => 'mine');
    $client->remove($snapshot, scope => 'subtree', force => 1, validate_only => 1);
    $client->purge($vm, force => 1, allow_missing => 1);
    $client->cancel('operations/1');
    my ($get, $create, $update, $revert, $remove, $purge, $cancel) = $server->asked;

    is $get->{path}, '/ravada.snapshot.v1.SnapshotService/GetVm', 'the path is service and method';
    is $get->{headers}{Authorization}, 'Bearer minted', 'the token is asked for';
    is_deeply $get->{json}, { name => "vms/$vm" }, 'a UUID becomes a resource name';
    ok !exists $get->{json}{requestId}, 'a read has no request id';

    like delete $create->{json}{requestId}, $uuid, 'a change has a request id of its own';
    is_deeply $create->{json},
        {
        parent   => "vms/$vm",
        content  => 'SNAPSHOT_CONTENT_DISKS_AND_MEMORY',
        snapshot => { displayName => "r\x{e9}sum\x{e9}", description => 'd', protected => Mojo::JSON->true },
        },
        'create';
    delete $update->{json}{requestId};
    is_deeply $update->{json},
        {
        snapshot   => { name => $snapshot, displayName => 'n', protected => Mojo::JSON->false },
        updateMask => 'displayName,protected',
        },
        'update names what it sets';
    is $revert->{json}{requestId}, 'mine', "the caller's request id is used";
    is $revert->{json}{runAfter}, 'RUN_AFTER_OFF', 'revert';
    is $remove->{json}{scope}, 'DELETE_SCOPE_SUBTREE', 'remove';
    ok $remove->{json}{validateOnly}, 'a plan only';
    ok $purge->{json}{force} && $purge->{json}{allowMissing}, 'purge';
    is $cancel->{path}, '/ravada.snapshot.v1.OperationService/CancelOperation', 'operations are another service';
};

subtest 'called wrongly' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok({}));
    my $client = client($server);
    like failure(sub { $client->create($vm) }),                            qr/name is required/,  'no name';
    like failure(sub { $client->create($vm, name => 'n', contnet => 1) }), qr/unknown: contnet/,  'a slip of the pen';
    like failure(sub { $client->remove($snapshot, scope => 'all') }),      qr/scope is one of/,   'no such scope';
    like failure(sub { $client->vm('../etc') }),                           qr/not a machine's UUID/, 'no UUID';
    like failure(sub { Ravada::Snapshots::Client->new(url => 'x') }),      qr/token is required/, 'no token';
    is scalar($server->asked), 0, 'nothing was sent';
};

subtest 'refusals are typed and not repeated' => sub {
    my $server = Test::Gateway->start(
        Test::Gateway->refusal(400, 'failed_precondition', 'VM_HIBERNATED', metadata => { vm => $vm }));
    my $error = failure(sub { client($server)->create($vm, name => 'n') });
    isa_ok $error, 'Ravada::Snapshots::Error';
    is $error->reason, 'VM_HIBERNATED', 'the reason';
    is $error->metadata->{vm}, $vm, 'the metadata';
    is scalar($server->asked), 1, 'asked once';
};

subtest 'lost answers are asked for again, by the same request id' => sub {
    my $server = Test::Gateway->start(
        Test::Gateway->hang_up,
        Test::Gateway->refusal(503, 'unavailable', 'API_UNAVAILABLE', retry => '0.050s'),
        sub ($c, $) { $c->render(status => 502, text => '<html>a proxy</html>') },
        Test::Gateway->ok(operation('RUNNING')),
    );
    my $answer = client($server)->create($vm, name => 'n');
    is $answer->{name}, 'operations/1', 'at last it is done';
    my @ids = map { $_->{json}{requestId} } $server->asked;
    is scalar(@ids), 4, 'four attempts';
    is scalar(keys %{ { map { $_ => 1 } @ids } }), 1, 'one request id';
};

subtest 'a token that is used up is replaced once' => sub {
    my $spent  = Test::Gateway->refusal(401, 'unauthenticated', 'TOKEN_SPENT');
    my $number = 0;
    my %source = (token => sub { 'token-' . ++$number });
    my $server = Test::Gateway->start($spent, Test::Gateway->ok(operation('RUNNING')));
    is client($server, %source)->purge($vm)->{name}, 'operations/1', 'by the next of its source';
    my ($first, $second) = $server->asked;
    is $second->{json}{requestId}, $first->{json}{requestId}, 'under the same request id';
    isnt $second->{headers}{Authorization}, $first->{headers}{Authorization}, 'with another token';

    my $never = Test::Gateway->start($spent);
    is failure(sub { client($never, %source)->purge($vm) })->reason, 'TOKEN_SPENT', 'and told when that is no better';
    is scalar($never->asked), 2, 'after one more';
    my $fixed = Test::Gateway->start($spent);
    is failure(sub { client($fixed, token => 'x')->purge($vm) })->reason, 'TOKEN_SPENT', 'there is no other one';
    is scalar($fixed->asked), 1, 'so it is not sent again';
};

subtest 'attempts have an end' => sub {
    my $server = Test::Gateway->start(Test::Gateway->hang_up);
    my $error  = failure(sub { client($server, attempts => 3)->list($vm) });
    is_deeply [ $error->code, $error->reason ], [qw(unavailable TRANSPORT)], 'typed';
    is scalar($server->asked), 3, 'three attempts';

    my $port = $server->url;
    $server->stop;
    $error = failure(sub { client($server, attempts => 2)->vm($vm) });
    is $error->reason, 'TRANSPORT', 'nobody listens';
};

subtest 'an answer that does not come' => sub {
    my $server = Test::Gateway->start(Test::Gateway->silence);
    my $begun  = time;
    my $error  = failure(sub { client($server, timeout => 0.5, attempts => 2)->vm($vm) });
    is_deeply [ $error->code, $error->reason ], [qw(deadline_exceeded DEADLINE_EXCEEDED)], 'is typed';
    is scalar($server->asked), 2, 'is asked for again';
    cmp_ok time - $begun, '<', 20, 'and has an end';
};

subtest 'busy is waited for only with patience' => sub {
    my @busy   = (Test::Gateway->refusal(409, 'aborted', 'VM_BUSY', retry => '0.050s')) x 3;
    my $server = Test::Gateway->start(@busy, Test::Gateway->ok(operation('RUNNING')));
    is failure(sub { client($server)->purge($vm) })->reason, 'VM_BUSY', 'without patience it is an error';
    is client($server, patience => 20)->purge($vm)->{name}, 'operations/1', 'with patience it is waited for';
    my $stuck = Test::Gateway->start($busy[0]);
    is failure(sub { client($stuck, patience => 0.3)->purge($vm) })->reason, 'VM_BUSY', 'as long as there is patience';
};

subtest 'garbage is an error and not an answer' => sub {
    for my $body ('', 'null', '[]', '{"a":', "\xff") {
        my $server = Test::Gateway->start(sub ($c, $) { $c->render(data => $body, format => 'json') });
        my $error  = failure(sub { client($server, attempts => 1)->vm($vm) });
        ok(Ravada::Snapshots::Error->is($error), 'a body of ' . length($body) . ' bytes');
    }
};

subtest 'all pages of a list' => sub {
    my $server = Test::Gateway->start(
        Test::Gateway->ok({ snapshots => [ { name => 'a' }, { name => 'b' } ], nextPageToken => 'p' }),
        Test::Gateway->ok({ snapshots => [ { name => 'c' } ] }),
    );
    is_deeply [ map { $_->{name} } @{ client($server)->list($vm) } ], [qw(a b c)], 'in order';
    is(($server->asked)[1]{json}{pageToken}, 'p', 'by the token of the page before');
    my $none = Test::Gateway->start(Test::Gateway->ok({}));
    is_deeply client($none)->list($vm), [], 'and none at all';
};

subtest 'waiting by the stream' => sub {
    my @news = map { { operation => $_ } } operation('RUNNING', progress => { percent => 50 }), operation('SUCCEEDED');
    my $server = Test::Gateway->start(Test::Gateway->stream(\@news));
    my @seen;
    my $ended = client($server)->wait(operation('PENDING'), progress => sub ($o) { push @seen, $o->{state} });
    is $ended->{state}, 'OPERATION_STATE_SUCCEEDED', 'until it is done';
    is $seen[1], 'OPERATION_STATE_RUNNING', 'each change is told';
    is_deeply [ map { $_->{path} =~ s{.*/}{}r } $server->asked ], ['WatchOperation'], 'by one call';
};

subtest 'waiting when the stream breaks or cannot be had' => sub {
    my $server = Test::Gateway->start(
        Test::Gateway->stream([ { operation => operation('RUNNING') } ], cut => 1),
        Test::Gateway->ok(operation('RUNNING')),
        Test::Gateway->refusal(401, 'unauthenticated', 'TOKEN_EXPIRED'),
        Test::Gateway->ok(operation('SUCCEEDED', snapshot => $snapshot)),
    );
    is client($server)->wait(operation('PENDING'))->{snapshot}, $snapshot, 'what was not told is asked for';
    is_deeply [ map { $_->{path} =~ s{.*/}{}r } $server->asked ],
        [qw(WatchOperation GetOperation WatchOperation GetOperation)], 'in turns';
};

subtest 'waiting for what fails' => sub {
    my $failed = operation('FAILED', error => { code => 8, reason => 'SPACE_LOW', message => 'the disk is full' });
    my $server = Test::Gateway->start(Test::Gateway->stream([ { operation => $failed } ]));
    my $error  = failure(sub { client($server)->wait(operation('PENDING')) });
    is_deeply [ $error->code, $error->reason, "$error" ], [ 'resource_exhausted', 'SPACE_LOW', 'the disk is full' ],
        'dies with its error';
    is $error->operation->{name}, 'operations/1', 'which knows the operation';

    my $slow = Test::Gateway->start(Test::Gateway->ok(operation('RUNNING')));
    is failure(sub { client($slow)->wait('operations/1', timeout => 1) })->reason, 'DEADLINE_EXCEEDED', 'waiting has an end';
};

subtest 'after a fork' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok({ name => 'x' }));
    my $client = client($server);
    $client->vm($vm);
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        my $right = eval { $client->vm($vm)->{name} eq 'x' };
        require POSIX;
        POSIX::_exit($right ? 0 : 1);
    }
    is $client->vm($vm)->{name}, 'x', 'the parent goes on';
    waitpid $pid, 0;
    is $?, 0, 'and so does the child, on a connection of its own';
};

done_testing;
