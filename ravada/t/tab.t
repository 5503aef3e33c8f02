use v5.36;

# The tab in a browser: the page of a front end with Ravada's interface, the element from the gateway through the plugin, tokens
# from the plugin, the real services, and a real guest that says what has become of its disk.

use FindBin;
use lib "$FindBin::Bin/lib";

use File::Path qw(make_path);
use File::Temp qw(tempdir);
use IPC::Open2 qw(open2);
use Mojo::JSON qw(decode_json encode_json);
use Mojo::Server::Daemon;
use Test::More;
use Test::RavadaFront;
use Test::RavadaHost;
use Test::Stage;

my $folder = tempdir(CLEANUP => 1);
my $stage  = Test::Stage->start('desk-1');
my $guest  = $stage->guest('desk-1');

Test::RavadaHost->database("$folder/ravada.db");
my $alice = Test::RavadaHost->add('users', name => 'alice');
my $desk  = Test::RavadaHost->add('domains', name => 'desk-1', id_owner => $alice, status => 'active');
$Test::RavadaHost::DBH->do('INSERT INTO domains_kvm VALUES (?,?)', undef, $desk, "<domain><uuid>$guest->{uuid}</uuid></domain>");

# The front end, in a process of its own; it ends with ours.
sub front () {
    my $config = "$folder/rvd_front.conf";
    open my $out, '>', $config or die "$config: $!";
    print {$out} "{ plugins => [ { 'RavadaSnapshots' => { gateway => '$stage->{gateway}', issuer => '$stage->{issuer}',",
        " kid => '$stage->{kid}', token_key => '$stage->{key}', token_seconds => 20 } } ] }";
    close $out or die $!;
    pipe my $read, my $write or die "pipe: $!";
    my $parent = $$;
    my $pid    = fork // die "fork: $!";
    if (!$pid) {
        require POSIX;
        eval {
            $Test::RavadaHost::DBH->{InactiveDestroy} = 1;
            $Test::RavadaHost::DBH = DBI->connect("dbi:SQLite:dbname=$folder/ravada.db", '', '', { RaiseError => 1 });
            my $daemon = Mojo::Server::Daemon->new(app => Test::RavadaFront->app($config), listen => ['http://127.0.0.1'], silent => 1);
            $daemon->start;
            print {$write} $daemon->ports->[0], "\n";
            close $write;
            Mojo::IOLoop->recurring(1 => sub { POSIX::_exit(0) if getppid != $parent });
            Mojo::IOLoop->start;
        };
        warn $@;
        POSIX::_exit(1);
    }
    close $write;
    my $port = <$read> // die "the front end did not start\n";
    chomp $port;
    return ($pid, "http://127.0.0.1:$port");
}

my ($front, $url) = front();
my $browser = do {
    # Its profile goes with the folder.
    local $ENV{TMPDIR} = $folder;
    my $pid = open2(my $out, my $in, 'node', "$FindBin::Bin/tab.mjs");
    { pid => $pid, out => $out, in => $in };
};

END {
    my $status = $?;
    if ($browser) {
        close $browser->{in};
        waitpid $browser->{pid}, 0;
    }
    if ($front) {
        kill KILL => $front;
        waitpid $front, 0;
    }
    $? = $status;
}

sub browser ($do, %arguments) {
    print { $browser->{in} } encode_json({ do => $do, %arguments }), "\n";
    $browser->{in}->flush;
    my $line = readline $browser->{out};
    my $answer = decode_json($line // die "the browser is gone\n");
    die "$do: $answer->{error}\n" if defined $answer->{error};
    return $answer->{ok};
}

sub calls ($pattern) { return scalar grep { /$pattern/ } @{ browser('asked') } }

is $stage->say('desk-1', 'A')->{disk}, 'A', 'a guest has something to lose';
browser('go', url => "$url/login/$alice");
browser('go', url => "$url/machine/manage/$desk");
is calls(qr{/snapshots-tab/token/|WatchVm}), 0, 'whoever does not open the tab asks for nothing';
browser('open');
cmp_ok calls(qr{^POST /snapshots-tab/token/$desk$}), '>=', 1, 'the tab has got itself a token';

my $created = browser('create', name => 'before exam');
is_deeply $created->{problems}, [], 'a snapshot is taken';
is scalar($stage->virsh('snapshot-list', 'desk-1', '--name')), 1, 'and libvirt has it';

is $stage->say('desk-1', 'B')->{disk}, 'B', 'the guest breaks everything';
is_deeply browser('revert', name => 'before exam')->{problems}, [], 'a revert';
is $stage->say('desk-1')->{disk}, 'A', 'and the guest has its disk back';
cmp_ok calls(qr{/snapshots-tab/refresh/$desk$}), '>=', 1, 'Ravada was asked to look at the machine';

# A token of 20 seconds ends while the tab is open.
my $before = calls(qr{^POST /snapshots-tab/token/});
my $until  = time + 90;
sleep 1 while calls(qr{^POST /snapshots-tab/token/}) <= $before && time < $until;
cmp_ok calls(qr{^POST /snapshots-tab/token/}), '>', $before, 'when a token ends there is another';
browser('live');

is_deeply browser('remove', name => 'before exam')->{problems}, [], 'a removal';
my @left = $stage->virsh('snapshot-list', 'desk-1', '--name');
is scalar(@left), 1, 'what was kept at the revert is left, and nothing else';
my @errors = grep { !/401|TOKEN_EXPIRED/ } @{ browser('complaints') };
is_deeply \@errors, [], 'and the browser has no complaint: neither the policy nor the page';
my $pictures = ($ENV{CARGO_TARGET_DIR} // "$FindBin::Bin/../../target") . '/screenshots';
make_path($pictures);
browser('picture', file => "$pictures/ravada-tab.png");

$Test::RavadaHost::DBH->do(q{UPDATE domains SET status='hibernated'});
browser('go', url => "$url/machine/manage/$desk");
like browser('refused'), qr/hibernated/, 'a machine that cannot says why';

done_testing;
