use v5.36;

# Snapshots of real guests under a real libvirt, by the real services: made, used and removed from Perl, and gone with their
# machine. What counts is what the guest says of its disk, what virsh and qemu-img list, and what the catalogue answers.

use FindBin;
use lib "$FindBin::Bin/lib";

use DBI;
use Mojo::JSON qw(decode_json);
use Sys::Virt;
use Test::More;
use Test::RavadaHost;
use Test::Stage;
use Time::HiRes qw(sleep time);

use Ravada::Snapshots::Backend;
use Ravada::Snapshots::Client;
use Ravada::Snapshots::Config;
use Ravada::Snapshots::Token;

# How long to wait for what is certain to happen, on a machine that may be busy.
use constant PATIENCE => 60;

my $stage   = Test::Stage->start(qw(desk-1 desk-2 desk-3));
my $libvirt = Sys::Virt->new(uri => $stage->{libvirt});
my %service = (gateway => $stage->{gateway}, issuer => $stage->{issuer}, kid => $stage->{kid}, token_key => $stage->{key});
my $tokens  = Ravada::Snapshots::Token->new(map { $_ => $stage->{$_} } qw(issuer kid key));

sub client ($guest, @actions) {
    my $uuid = $stage->guest($guest)->{uuid};
    return Ravada::Snapshots::Client->new(
        url      => $stage->{gateway},
        patience => PATIENCE,
        token    => sub { $tokens->mint(subject => 'alice', vm => $uuid, actions => \@actions) },
    );
}

sub reason ($code) {
    return eval { $code->(); 1 } ? 'nothing' : Ravada::Snapshots::Error->is($@) ? $@->reason : "$@";
}

sub eventually ($what, $code) {
    my $until = time + PATIENCE;
    while (time < $until) {
        return pass($what) if eval { $code->() };
        sleep 0.2;
    }
    return fail("$what: not within @{[PATIENCE]} s; $@");
}

# Where snapshots of a guest are: the catalogue, libvirt, the image.
sub places ($guest) {
    my $known = client($guest, 'read')->list($stage->guest($guest)->{uuid});
    return {
        catalogue => [ sort map { $_->{name} =~ s{.*/}{}r } @$known ],
        libvirt   => [ sort $stage->virsh('snapshot-list', $guest, '--name') ],
        image     => [ sort $stage->tags($stage->guest($guest)->{disks}[0]) ],
    };
}

sub agree ($guest, $what, @expected) {
    my $places = places($guest);
    my @sorted = sort @expected;
    return is_deeply $places, { catalogue => \@sorted, libvirt => \@sorted, image => \@sorted }, $what;
}

subtest 'a token from Perl is believed, and for no more than it says' => sub {
    my ($mine, $other) = map { $stage->guest($_)->{uuid} } qw(desk-1 desk-2);
    my $reader = client('desk-1', 'read');
    is $reader->vm($mine)->{displayName}, 'desk-1', 'its machine is answered for';
    is reason(sub { $reader->vm($other) }), 'VM_NOT_FOUND', 'another one does not exist';
    is reason(sub { $reader->create($mine, name => 'x') }), 'ACTION_NOT_GRANTED', 'another action is not granted';
    is_deeply [ map { $_->{displayName} } @{ $reader->vms } ], ['desk-1'], 'it lists its machine alone';

    my $with = sub ($token) { Ravada::Snapshots::Client->new(url => $stage->{gateway}, token => $token) };
    my $old  = $tokens->mint(subject => 'alice', vm => $mine, actions => ['read'], now => time - 3600);
    is reason(sub { $with->($old)->vm($mine) }), 'TOKEN_EXPIRED', 'an old one is refused';
    my $good   = $tokens->mint(subject => 'alice', vm => $mine, actions => ['read']);
    my ($token, $secret) = split /~/, $good;
    is reason(sub { $with->($_)->vm($mine) }), 'TOKEN_INVALID', 'a forged one is refused, and one without its own secret'
        for $token =~ s/.\z/-/r . "~$secret", $token, "$token~", $token . '~' . reverse($secret), "$good~$secret";
};

my $client = client('desk-1', qw(read create update revert delete force));
my $uuid   = $stage->guest('desk-1')->{uuid};

subtest 'create, revert, remove' => sub {
    $stage->say('desk-1', 'A');
    my %can = map { $_->{kind} => $_ } @{ $client->vm($uuid)->{capabilities} };
    ok $can{CAPABILITY_KIND_CREATE_DISKS_AND_MEMORY}{available}, 'a running machine can have its running state kept';

    my $plan = $client->create($uuid, name => 'plan', validate_only => 1);
    ok @{ $plan->{plan}{steps} } && !$plan->{name}, 'a plan has steps and is no operation';
    agree('desk-1', 'and nothing was done');

    my @seen;
    my $created = $client->wait($client->create($uuid, name => 'before exam', description => "caf\x{e9}"),
        timeout => PATIENCE, progress => sub ($operation) { push @seen, $operation->{state} });
    is $seen[-1], 'OPERATION_STATE_SUCCEEDED', 'its progress was told to the end';
    my $first = $client->get($created->{snapshot});
    is $first->{displayName}, 'before exam', 'it has its name';
    is $first->{description}, "caf\x{e9}",   'and its description, letter by letter';
    my $id = $first->{name} =~ s{.*/}{}r;
    agree('desk-1', 'the catalogue, libvirt and the image have it', $id);

    is $stage->say('desk-1', 'B')->{disk}, 'B', 'the guest breaks everything';
    my $reverted = $client->wait($client->revert($first->{name}, save_current => 1, save_name => 'broken'), timeout => PATIENCE);
    my $guest    = $stage->say('desk-1');
    is $guest->{disk}, 'A', 'the guest has its disk back';
    is $guest->{ram},  'A', 'and its running state';

    my $broken = $reverted->{savedSnapshot};
    is $client->get($broken)->{displayName}, 'broken', 'what it had was kept';
    $client->wait($client->revert($broken), timeout => PATIENCE);
    is $stage->say('desk-1')->{disk}, 'B', 'and is there again';

    $client->wait($client->update($first->{name}, name => 'kept', protected => 1), timeout => PATIENCE);
    is $client->get($first->{name})->{displayName}, 'kept', 'it has another name';
    is reason(sub { $client->wait($client->remove($first->{name})) }), 'SNAPSHOT_PROTECTED', 'a protected one stays';
    is scalar(@{ $client->list($uuid) }), 2, 'two are listed';

    my $key = Ravada::Snapshots::Client->request_id;
    my $one = $client->remove($first->{name}, scope => 'subtree', force => 1, request_id => $key);
    is $client->remove($first->{name}, scope => 'subtree', force => 1, request_id => $key)->{name}, $one->{name},
        'a repeat is known for one';
    $client->wait($one, timeout => PATIENCE);
    agree('desk-1', 'nothing is left anywhere');
    is $stage->say('desk-1')->{disk}, 'B', 'the guest goes on as it was';
    is reason(sub { $client->get($first->{name}) }), 'SNAPSHOT_NOT_FOUND', 'what is gone is not found';
};

# From here on by a back end with Ravada's interface, with the hooks in it.
Test::RavadaHost->database;
my ($alice, $bob) = map { Test::RavadaHost->add('users', name => $_) } qw(alice bob);
my %id;
for my $guest (map { $_->{name} } @{ $stage->{guests} }) {
    $id{$guest} = Test::RavadaHost->add('domains', name => $guest, id_owner => $alice, status => 'active');
    $Ravada::Domain::LIBVIRT{ $id{$guest} } = $libvirt->get_domain_by_name($guest);
}
my $hooks  = Ravada::Snapshots::Backend::install(Ravada::Snapshots::Config->new(%service, wait_seconds => PATIENCE));
my $ravada = Ravada->new;
is_deeply [ $hooks->missing ], [], 'every method is wrapped';

sub request ($command, %args) {
    my $request = Ravada::Request->new_request($command, %args);
    $ravada->process_requests;
    is $request->status, 'done', "the request to $command is done";
    return $request;
}

subtest 'by requests, as the rest of Ravada asks' => sub {
    my %who = (uid => $alice, id_domain => $id{'desk-2'});
    $stage->say('desk-2', 'A');
    my $create = request('snapshot', %who, action => 'create', snapshot_name => 'by request');
    is $create->error, '', 'no error';
    my $snapshot = decode_json($create->output)->{snapshot};
    agree('desk-2', 'it is there', $snapshot =~ s{.*/}{}r);

    my $list = decode_json(request('snapshot', %who, action => 'list')->output);
    is_deeply [ map { $_->{displayName} } @{ $list->{snapshots} } ], ['by request'], 'it is listed';

    like request('snapshot', %who, uid => $bob, action => 'revert', snapshot => $snapshot)->error, qr/ACTION_NOT_GRANTED/,
        'another user may not';
    $stage->say('desk-2', 'B');
    $stage->virsh('destroy', 'desk-2');
    $Test::RavadaHost::DBH->do(q{UPDATE domains SET status='shutdown' WHERE id=?}, undef, $id{'desk-2'});
    eventually('the service knows that the machine is off',
        sub { client('desk-2', 'read')->vm($stage->guest('desk-2')->{uuid})->{state} eq 'VM_STATE_SHUTOFF' });
    is request('snapshot', %who, action => 'revert', snapshot => $snapshot)->error, '', 'a revert';
    is $stage->say('desk-2')->{disk}, 'A', 'the guest has its disk back';
    is Test::RavadaHost::row('domains', $id{'desk-2'})->{status}, 'active', "and Ravada's record says that it runs";

    is request('snapshot', %who, action => 'remove', snapshot => $snapshot)->error, '', 'a removal';
    agree('desk-2', 'nothing is left');
    like request('snapshot', %who, action => 'remove', snapshot => $snapshot)->error, qr/SNAPSHOT_NOT_FOUND/,
        'what is not there is said so';
};

subtest 'what would destroy snapshots is refused, and nothing else is' => sub {
    my $domain = Ravada::Domain->open($id{'desk-2'});
    is $domain->spinoff, 'spinoff', 'without a snapshot it is done';
    my $client = client('desk-2', qw(read create delete));
    my $taken  = $client->wait($client->create($stage->guest('desk-2')->{uuid}, name => 'in the way'), timeout => PATIENCE);
    like reason(sub { $domain->spinoff }), qr/desk-2 has 1 snapshot, and a spinoff would destroy it\. Remove it first/, 'with one it is not';
    like reason(sub { $domain->change_hardware('disk', 0, {}) }), qr/changing a disk/, 'nor are its disks changed';
    is $domain->change_hardware('memory', 0, {}), 'change memory', 'its memory is';
    agree('desk-2', 'and the snapshot is there', $taken->{snapshot} =~ s{.*/}{}r);
};

subtest 'removing a machine removes its snapshots' => sub {
    my $guest  = $stage->guest('desk-2');
    my $client = client('desk-2', qw(read create update));
    my $first  = $client->list($guest->{uuid})->[0];
    $client->wait($client->update($first->{name}, protected => 1),          timeout => PATIENCE);
    $client->wait($client->create($guest->{uuid}, name => 'one more'), timeout => PATIENCE);
    is scalar($stage->virsh('snapshot-list', 'desk-2', '--name')), 2, 'it has two, one of them protected';

    my $foreign = request('remove_domain', uid => $bob, name => 'desk-2');
    ok $foreign->error, 'another user may not';
    is scalar($stage->virsh('snapshot-list', 'desk-2', '--name')), 2, 'and then nothing is purged';

    is request('remove_domain', uid => $alice, name => 'desk-2')->error, '', 'its owner may';
    ok !(grep { $_ eq 'desk-2' } $stage->virsh('list', '--all', '--name')), 'libvirt has no such machine';
    ok !-e $guest->{disks}[0], 'its disk is gone';
    ok !glob("$stage->{snapshot_folder}/desk-2/*"), "libvirt's records are gone";
    eventually('the service has no such machine', sub { reason(sub { $client->vm($guest->{uuid}) }) eq 'VM_NOT_FOUND' });
    my $catalogue = DBI->connect("dbi:SQLite:dbname=$stage->{database}", '', '', { RaiseError => 1, ReadOnly => 1 });
    my ($left) = $catalogue->selectrow_array(q{SELECT count(*) FROM snapshots WHERE instr(vm, ?)}, undef, $guest->{uuid});
    is $left, 0, 'nor its catalogue any snapshot';
    is $stage->say('desk-1')->{disk}, 'B', 'another machine goes on';
};

subtest 'a machine whose snapshots cannot be purged stays' => sub {
    my $guest  = $stage->guest('desk-3');
    my $client = client('desk-3', qw(read create));
    $stage->say('desk-3', 'A');
    my $taken = $client->wait($client->create($guest->{uuid}, name => 'precious'), timeout => PATIENCE);
    $hooks->{config} = Ravada::Snapshots::Config->new(%service, gateway => 'http://127.0.0.1:1', wait_seconds => 5);
    my $request = request('remove_domain', uid => $alice, name => 'desk-3');
    like $request->error, qr/desk-3 was not removed, because its snapshots could not be: .*cannot be reached/,
        'the service is away, and the error says so';
    is(($stage->virsh('domstate', 'desk-3'))[0], 'running', 'the machine even runs on');
    is $stage->say('desk-3')->{disk}, 'A', 'with its disk';
    agree('desk-3', 'and its snapshot', $taken->{snapshot} =~ s{.*/}{}r);

    $hooks->{config} =
        Ravada::Snapshots::Config->new(%service, gateway => 'http://127.0.0.1:1', wait_seconds => 5, when_unreachable => 'allow');
    is request('remove_domain', uid => $alice, name => 'desk-3')->error, '', 'unless the administrator has decided otherwise';
    ok !-e $guest->{disks}[0], 'then its disk goes, with the snapshots in it';
    ok !glob("$stage->{snapshot_folder}/desk-3/*"), "and libvirt's records";
    eventually('and the service learns of it', sub { reason(sub { $client->vm($guest->{uuid}) }) eq 'VM_NOT_FOUND' });
};

undef $libvirt;
$stage->stop;
done_testing;
