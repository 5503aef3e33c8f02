use v5.36;

# The plugin in a front end with Ravada's interface: the tab, the tokens, and the way to the gateway.

use FindBin;
use lib "$FindBin::Bin/lib";

use Crypt::JWT qw(decode_jwt);
use Crypt::PK::Ed25519;
use File::Temp qw(tempdir);
use Mojo::IOLoop;
use Mojo::JSON qw(decode_json);
use Mojolicious::Plugin::RavadaSnapshots::Tab;
use Test::Gateway;
use Test::Mojo;
use Test::More;
use Test::RavadaFront;
use Test::RavadaHost;
use Time::HiRes qw(time);

my $uuid   = '6f0c2a4e-1111-4222-8333-444455556666';
my $folder = tempdir(CLEANUP => 1);
my $pair   = Crypt::PK::Ed25519->new->generate_key;
write_file("$folder/key", $pair->export_key_pem('private'));

sub write_file ($path, $bytes) {
    open my $out, '>', $path or die "$path: $!";
    print {$out} $bytes;
    close $out or die "$path: $!";
    return $path;
}

# The one line in Ravada's configuration.
sub front ($gateway, $settings = "kid => 'k', token_key => '$folder/key'") {
    my $file = write_file("$folder/rvd_front.conf",
        "{ plugins => [ { 'RavadaSnapshots' => { gateway => '$gateway', $settings } } ] }");
    my $test = Test::Mojo->new(Test::RavadaFront->app($file));
    # What a browser adds by itself.
    $test->ua->on(start => sub ($ua, $tx) {
        $tx->req->headers->header('Sec-Fetch-Site' => 'same-origin') if !defined $tx->req->headers->header('Sec-Fetch-Site');
    });
    return $test;
}

my $dbh = Test::RavadaHost->database;
my ($alice, $bob, $carol) = map { Test::RavadaHost->add('users', name => $_) } qw(alice bob carol);
my $root = Test::RavadaHost->add('users', name => 'root', is_admin => 1);
my $desk = Test::RavadaHost->add('domains', name => 'desk', id_owner => $alice);
Test::RavadaHost->add('domain_share', id_domain => $desk, id_user => $bob);
$dbh->do('INSERT INTO domains_kvm VALUES (?,?)', undef, $desk, "<domain><name>desk</name><uuid>\U$uuid\E</uuid></domain>");

# Puts the machine in another state for as long as the code runs.
sub as ($field, $value, $code) {
    my $before = Test::RavadaHost::row('domains', $desk)->{$field};
    $dbh->do("UPDATE domains SET $field=? WHERE id=?", undef, $value, $desk);
    $code->();
    $dbh->do("UPDATE domains SET $field=? WHERE id=?", undef, $before, $desk);
    return;
}

sub token ($test, $path = "/snapshots-tab/token/$desk", %headers) { return $test->post_ok($path, \%headers) }

sub claims ($test) {
    my ($token, $secret) = split /~/, $test->tx->res->json('/token');
    ok length $secret, 'a secret comes with it';
    return decode_jwt(token => $token, key => \$pair->export_key_pem('public'), accepted_alg => 'EdDSA');
}

my $gateway = Test::Gateway->start(Test::Gateway->ok({ name => "vms/$uuid" }));
my $test    = front($gateway->url);

subtest 'nobody is logged in' => sub {
    token($test)->status_is(401);
    $test->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm')->status_is(401);
    is scalar($gateway->asked), 0, 'nothing reaches the gateway';
};

$test->get_ok("/login/$alice");

subtest 'the tab' => sub {
    my $page = $test->get_ok("/machine/manage/$desk")->status_is(200);
    $page->element_exists('#v-pills-tab > a#v-pills-screenshot-tab + a#v-pills-snapshots-tab.nav-link', 'after the screenshot')
        ->text_is('#v-pills-snapshots-tab' => "Instant\x{e0}nies", 'in the language of the page')
        ->element_exists('#v-pills-tabContent > #v-pills-snapshots.tab-pane[ng-non-bindable] > ravada-snapshots', 'a pane')
        ->attr_is('ravada-snapshots', vm => $uuid)->attr_is('ravada-snapshots', endpoint => '/snapshots-api')
        ->attr_is('ravada-snapshots', 'token-url' => "/snapshots-tab/token/$desk")
        ->element_exists('script[type=module][src="/snapshots-api/element.js"]')
        ->text_like(h1 => qr/caf\x{e9} \x{2615} desk/, 'what was there is as it was')
        ->element_exists('#v-pills-share-tab')->element_exists('#v-pills-tabContent > #v-pills-screenshot');
    $test->get_ok('/')->content_is('the list of machines', 'other pages are not touched');
    for my $case ([ en => 'en' ], [ zh_CN => 'zh-CN' ], [ 'ca@valencia' => 'ca-valencia' ], [ q{en" x="} => '' ]) {
        local $Test::RavadaFront::LANGUAGE = $case->[0];
        $test->get_ok("/machine/manage/$desk")->attr_is('ravada-snapshots', lang => $case->[1], 'in the language of the page');
    }
};

subtest 'no tab' => sub {
    for my $case ([ is_base => 1 ], [ is_volatile => 1 ], [ vm => 'Void' ]) {
        as(@$case, sub { $test->get_ok("/machine/manage/$desk")->status_is(200)->element_exists_not('ravada-snapshots', "@$case") });
    }
    $test->get_ok("/login/$carol")->get_ok("/machine/manage/$desk")->element_exists_not('ravada-snapshots', 'for a stranger');
    $test->get_ok("/login/$alice");
    for my $anchor (sort keys %Test::RavadaFront::ANCHOR) {
        local $Test::RavadaFront::ANCHOR{$anchor} = '<p>another release</p>';
        my $front = front($gateway->url);
        my @said;
        $front->app->log->level('error')->unsubscribe('message')->on(message => sub ($log, $level, @lines) { push @said, "@lines" });
        $front->get_ok("/login/$alice");
        $front->get_ok("/machine/manage/$desk")->status_is(200)->element_exists_not('ravada-snapshots', "without the anchor $anchor")
            ->content_unlike(qr/snapshots-api/, 'the page stays as it is')->content_like(qr/another release/) for 1 .. 2;
        is scalar(grep { /cannot be put into the settings page: .* is there 0 times/ } @said), 1, 'and the log says so, once';
    }
    my ($html, $problem) = Mojolicious::Plugin::RavadaSnapshots::Tab::insert('<p></p>');
    ok !defined $html && $problem =~ /the list of tabs is there 0 times/, 'with the reason';
    my $text = join '', values %Test::RavadaFront::ANCHOR;
    my ($escaped) = Mojolicious::Plugin::RavadaSnapshots::Tab::insert($text, label => '<b>"&', vm => '">', path => '', token_url => '', refresh_url => '');
    unlike $escaped, qr/<b>|vm="">/, 'what is put in is escaped';
    ($html, $problem) = Mojolicious::Plugin::RavadaSnapshots::Tab::insert($escaped);
    like $problem, qr/already/, 'and never put in twice';
};

subtest 'a token' => sub {
    my $begun = time;
    token($test)->status_is(200)->json_is('/vm' => $uuid)->json_is('/expiresIn' => 60)->header_is('Cache-Control' => 'no-store');
    my $claims = claims($test);
    is_deeply $claims->{grants}, [ { vm => $uuid, actions => [qw(create delete read revert update)] } ],
        'for exactly this machine, and what its owner may do';
    is $claims->{sub}, 'alice', 'in the name of the user';
    cmp_ok $claims->{exp} - $begun, '<=', 61, 'for a minute';
    ok !$test->tx->res->headers->set_cookie, 'asking for one does not make the session longer';

    $test->get_ok("/login/$bob");
    token($test)->status_is(200);
    is_deeply claims($test)->{grants}[0]{actions}, [qw(create read revert update)],
        'whom it is shared with may not delete';
    $test->get_ok("/login/$root");
    token($test)->status_is(200);
    is_deeply claims($test)->{grants}[0]{actions}, [qw(create delete force read revert update)],
        'an administrator may, protected ones too';
    $test->get_ok("/login/$carol");
    token($test)->status_is(404)->json_is('/error/reason' => 'VM_NOT_FOUND');
    my $stranger = $test->tx->res->body;
    token($test, '/snapshots-tab/token/999')->status_is(404)->content_is($stranger, 'as one that there is not');
    $test->get_ok("/login/$alice");
};

subtest 'refused by the state of the machine' => sub {
    for my $case (
        [ is_base     => 1,            'VM_IS_BASE' ],
        [ is_volatile => 1,            'VM_TRANSIENT' ],
        [ vm          => 'Void',       'VM_NOT_KVM' ],
        [ status      => 'hibernated', 'VM_HIBERNATED' ],
    ) {
        my ($field, $value, $reason) = @$case;
        as($field, $value, sub {
            token($test)->status_is(409)->json_is('/error/reason' => $reason)->json_is('/error/retryable' => Mojo::JSON->false)
                ->json_like('/error/message' => qr/\.\z/)->json_hasnt('/token');
        });
    }
    my $busy = Test::RavadaHost->add('requests', command => 'start', status => 'working', id_domain => $desk);
    token($test)->status_is(409)->json_is('/error/reason' => 'VM_BUSY')->json_is('/error/retryable' => Mojo::JSON->true);
    $dbh->do('DELETE FROM requests WHERE id=?', undef, $busy);
    my $new = Test::RavadaHost->add('domains', name => 'new', id_owner => $alice);
    token($test, "/snapshots-tab/token/$new")->status_is(409)->json_is('/error/reason' => 'VM_NO_UUID');
};

subtest 'only for a page of this origin' => sub {
    my $host = $test->ua->server->url->host_port;
    for my $case (
        [ 'another site',             { 'Sec-Fetch-Site' => 'cross-site' } ],
        [ 'a neighbour',              { 'Sec-Fetch-Site' => 'same-site' } ],
        [ 'a link that was typed',    { 'Sec-Fetch-Site' => 'none' } ],
        [ 'another origin',           { Origin => 'https://evil.example' } ],
        [ 'another port',             { Origin => 'http://127.0.0.1:1' } ],
        [ 'no origin at all',         { Origin => 'null' } ],
        [ 'one that only looks so',   { Origin => "http://$host.evil.example" } ],
    ) {
        my ($name, $headers) = @$case;
        token($test, "/snapshots-tab/token/$desk", %$headers)->status_is(403, $name)->json_is('/error/reason' => 'NOT_SAME_ORIGIN');
        $test->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm', $headers)->status_is(403);
    }
    token($test, "/snapshots-tab/token/$desk", Origin => "http://$host")->status_is(200, 'our own page');
    $test->get_ok("/snapshots-tab/token/$desk")->status_is(404, 'never by GET');
    is scalar($gateway->asked), 0, 'nothing reached the gateway';
};

subtest 'the machine has changed' => sub {
    $test->post_ok("/snapshots-tab/refresh/$desk")->status_is(200);
    is_deeply $dbh->selectrow_arrayref('SELECT command, id_domain FROM requests'), [ 'refresh_machine', $desk ],
        'Ravada looks at it';
    $dbh->do('DELETE FROM requests');
    $test->get_ok("/login/$carol")->post_ok("/snapshots-tab/refresh/$desk")->status_is(404, 'not for a stranger');
    is $dbh->selectrow_array('SELECT count(*) FROM requests'), 0, 'and then it does not';
    $test->get_ok("/login/$alice");
};

subtest 'the way to the gateway' => sub {
    my %headers = (
        Authorization => 'Bearer t', 'Content-Type' => 'application/json', 'X-Forwarded-For' => '6.6.6.6',
        'X-Real-IP' => '6.6.6.6', Cookie => 'other=1', 'Connect-Protocol-Version' => 1, 'X-Remote-User' => 'root',
    );
    $test->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm?connect=v1' => \%headers => '{"name":"x"}')
        ->status_is(200)->json_is('/name' => "vms/$uuid")->header_is('X-Accel-Buffering' => 'no');
    ok !$test->tx->res->headers->set_cookie, 'a read does not make the session longer';
    my ($asked) = $gateway->asked;
    is $asked->{path},  '/ravada.snapshot.v1.SnapshotService/GetVm', 'the path';
    is $asked->{query}, 'connect=v1', 'the query';
    is_deeply $asked->{json}, { name => 'x' }, 'the body';
    is $asked->{headers}{Authorization}, 'Bearer t', 'the token';
    ok !exists $asked->{headers}{$_}, "no $_" for qw(Cookie X-Real-IP X-Remote-User);
    is $asked->{headers}{'X-Forwarded-For'}, '127.0.0.1', 'whom it is for, as we see it';

    $test->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/CreateSnapshot' => \%headers => '{}')->status_is(200);
    ok $test->tx->res->headers->set_cookie, 'what the user does keeps the session';
    $test->get_ok('/snapshots-api/element.js')->status_is(200);
    $test->get_ok('/snapshots-api/zh-CN-QK5TN3ZV.js')->status_is(200, 'what the element loads, too');
    my $count = $gateway->asked;
    for my $path (
        '', 'index.html', 'app.js', 'metrics', 'grpc.health.v1.Health/Check', 'ravada.snapshot.v1.HostService/ListHosts',
        'ravada.snapshot.v1.SnapshotService/', 'ravada.snapshot.v1.SnapshotService/../../metrics',
        'ravada.snapshot.v1.SnapshotService%2f..%2f..%2fmetrics', 'ravada.snapshot.v1.SnapshotServiceX/GetVm',
        'x/element.js', 'element.js/x', 'ca-qk5tn3zv.js', '../ca-QK5TN3ZV.js', 'ravada.snapshot.agent.v1.AgentService/Execute', "element.js%0a",
    ) {
        $test->post_ok("/snapshots-api/$path" => \%headers => '{}')->status_is(404, "not served: '$path'");
        $test->get_ok("/snapshots-api/$path")->status_is(404);
    }
    $test->get_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm')->status_is(404, 'a call is never a GET');
    $test->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm' => \%headers => 'x' x 70_000)->status_is(413, 'nor large');
    is scalar($gateway->asked), $count, 'and the gateway was not asked';
};

subtest "the gateway's refusals and failures" => sub {
    my $refusing = Test::Gateway->start(Test::Gateway->refusal(409, 'aborted', 'VM_BUSY', retry => '1s'));
    my $front    = front($refusing->url);
    my $call     = '/snapshots-api/ravada.snapshot.v1.SnapshotService/PurgeVm';
    $front->get_ok("/login/$alice")->post_ok($call => json => {})->status_is(409)->json_is('/code' => 'aborted')
        ->json_is('/details/0/debug/reason' => 'VM_BUSY');
    $refusing->stop;
    $front->post_ok($call => json => {})->status_is(502)->json_is('/code' => 'unavailable')
        ->json_is('/details/0/debug/reason' => 'API_UNAVAILABLE', 'one that is away');
    my $silent = Test::Gateway->start(Test::Gateway->hang_up);
    front($silent->url)->get_ok("/login/$alice")->post_ok($call => json => {})->status_is(502, 'one that hangs up');
    my $cookies = Test::Gateway->start(sub ($c, $) { $c->cookie(stolen => 1); $c->render(json => {}) });
    $front = front($cookies->url)->get_ok("/login/$alice")->post_ok('/snapshots-api/ravada.snapshot.v1.SnapshotService/GetVm' => json => {});
    ok !$front->tx->res->headers->set_cookie, 'its cookies are not passed on';
    my $cached = Test::Gateway->start(sub ($c, $) {
        $c->res->headers->etag('"1"')->cache_control('no-cache');
        $c->req->headers->header('If-None-Match') ? $c->rendered(304) : $c->render(data => "x\n" x 5000, format => 'js');
    });
    $front = front($cached->url)->get_ok("/login/$alice");
    $front->get_ok('/snapshots-api/element.js')->status_is(200)->header_is(ETag => '"1"')->content_is("x\n" x 5000);
    $front->get_ok('/snapshots-api/element.js' => { 'If-None-Match' => '"1"' })->status_is(304)->content_is('');
    $front->head_ok('/snapshots-api/element.js')->status_is(200)->content_is('');
};

subtest 'a watch' => sub {
    my $mark   = "$folder/closed";
    my $server = Test::Gateway->start(
        sub ($c, $) {
            $c->inactivity_timeout(100)->render_later;
            $c->res->headers->content_type('application/connect+json');
            $c->tx->on(finish => sub { open my $out, '>', $mark; close $out });
            $c->write_chunk("first\n");
            Mojo::IOLoop->recurring(0.1 => sub { $c->write_chunk("news\n") if -e "$folder/go" });
        }
    );
    my $front = front($server->url)->get_ok("/login/$alice");
    my $tx    = $front->ua->build_tx(POST => '/snapshots-api/ravada.snapshot.v1.SnapshotService/WatchVm' => {} => 'x');
    my $heard = '';
    $tx->res->content->unsubscribe('read')->on(read => sub ($content, $bytes) { $heard .= $bytes });
    my $ended = 0;
    $front->ua->inactivity_timeout(100)->request_timeout(100)->start($tx => sub { $ended = 1 });
    my $until = sub ($what, $condition) {
        my $late = time + 30;
        Mojo::IOLoop->one_tick while !$condition->() && time < $late;
        ok $condition->(), $what;
    };
    my $tick = Mojo::IOLoop->recurring(0.05 => sub { });
    $until->('what is told arrives at once', sub { $heard =~ /first/ });
    unlike $heard, qr/news/, 'and nothing more yet';
    $front->get_ok('/')->status_is(200, 'other pages are served meanwhile');
    write_file("$folder/go", '');
    $until->('what is told later arrives, too', sub { $heard =~ /news/ });
    ok !$ended && !-e $mark, 'it goes on';
    Mojo::IOLoop->remove($tx->connection);
    $until->('when the browser goes away, the gateway is told', sub { -e $mark });
    Mojo::IOLoop->remove($tick);
};

subtest 'what is wrong does not keep Ravada from starting' => sub {
    for my $settings ('', "kid => 'k', token_key => '/nowhere'", "kid => 'k', token_key => '$folder/key', typo => 1") {
        my $front = front('http://127.0.0.1:1', $settings);
        $front->get_ok("/login/$alice")->get_ok("/machine/manage/$desk")->status_is(200)->element_exists_not('ravada-snapshots');
        $front->post_ok("/snapshots-tab/token/$desk")->status_is(404);
    }
};

done_testing;
