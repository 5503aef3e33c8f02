use v5.36;

# The hooks in a back end with Ravada's interface, where libvirt and the service fail as they are told to.

use FindBin;
use lib "$FindBin::Bin/lib";

use Crypt::PK::Ed25519;
use File::Temp qw(tempdir);
use Mojo::JSON qw(decode_json);
use Test::More;
use Test::Gateway;
use Test::RavadaHost;

my $uuid = '6f0c2a4e-1111-4222-8333-444455556666';

# A machine in libvirt, as Sys::Virt has it.
package Sys::Virt::Domain {
    $INC{'Sys/Virt/Domain.pm'} = __FILE__;
    sub new ($class, %facts) { return bless { uuid => $uuid, count => 0, %facts }, $class }
    sub get_uuid_string ($self) { return uc $self->{uuid} }
    sub get_xml_description ($self) { return '' }
    sub is_active ($self) { return $self->{active} }
    sub destroy ($self) { return }
    # With the prototype that those written in C have.
    sub undefine : prototype($;$) ($self, $flags = 0) {
        die "libvirt error code: 55, message: cannot delete inactive domain with snapshots\n" if $self->{count} && !($flags & 2);
        $self->{undefined} = $flags;
        return;
    }

    sub num_of_snapshots ($self) {
        die $self->{count} if ref $self->{count} || $self->{count} =~ /\D/;
        return $self->{count};
    }
}

use Ravada::Snapshots::Backend;
use Ravada::Snapshots::Config;

my $folder = tempdir(CLEANUP => 1);
open my $out, '>', "$folder/key" or die $!;
print {$out} Crypt::PK::Ed25519->new->generate_key->export_key_pem('private');
close $out or die $!;

my @warnings;
local $SIG{__WARN__} = sub ($text) { push @warnings, $text };

Test::RavadaHost->database;
my ($alice, $bob) = map { Test::RavadaHost->add('users', name => $_) } qw(alice bob);
my $id     = Test::RavadaHost->add('domains', name => 'desk', id_owner => $alice);
my $hooks  = Ravada::Snapshots::Backend::install();
my $ravada = Ravada->new;

my $gone = Test::Gateway->ok({ name => "vms/$uuid" });
my $none = Test::Gateway->refusal(404, 'not_found', 'VM_NOT_FOUND');
my $away = 'http://127.0.0.1:1';

# The machine as libvirt and the service have it; returns Ravada's object for it.
sub machine ($count, $gateway, %settings) {
    $Ravada::Domain::LIBVIRT{$id} = Sys::Virt::Domain->new(count => $count);
    @{ $Test::RavadaHost::DID{$id} } = ();
    $Test::RavadaHost::DBH->do('DELETE FROM requests');
    @warnings = ();
    $hooks->{config} = Ravada::Snapshots::Config->new(
        gateway => ref $gateway ? $gateway->url : $gateway, kid => 'k', token_key => "$folder/key", wait_seconds => 2, %settings);
    return Ravada::Domain->open($id);
}

sub did () { return join ', ', @{ $Test::RavadaHost::DID{$id} // [] } }
sub failure ($code) { return eval { $code->(); 1 } ? 'nothing' : "$@" }
sub operation ($state, %more) { return { name => 'operations/1', state => "OPERATION_STATE_$state", %more } }

is_deeply [ $hooks->missing ], [], 'every method is wrapped';
is_deeply \@warnings, [], 'without a word';
is Ravada::Snapshots::Backend::install(), $hooks, 'and but once';

my %guarded = (
    spinoff        => sub ($d) { $d->spinoff },
    restore        => sub ($d) { $d->restore('user') },
    rebase         => sub ($d) { $d->rebase('user', 'base') },
    compact        => sub ($d) { $d->compact },
    prepare_base   => sub ($d) { $d->prepare_base(0) },
    restore_backup => sub ($d) { $d->restore_backup('file') },
    migrate        => sub ($d) { $d->migrate('node') },
    'add disk'     => sub ($d) { $d->set_controller('disk', 1, {}) },
    'remove disk'  => sub ($d) { $d->remove_controller('disk', 0) },
    'change disk'  => sub ($d) { $d->change_hardware('disk', 0, {}) },
);

subtest 'guards' => sub {
    my $server = Test::Gateway->start($gone);
    for my $name (sort keys %guarded) {
        my $call = $guarded{$name};
        is $call->(machine(0, $server)), $name, "$name: done without snapshots";
        is did(), $name, '... once';

        my $error = failure(sub { $call->(machine(2, $away)) });
        like $error, qr/\Adesk has 2 snapshots, and .* would destroy them\. Remove them first\.\n\z/,
            "$name: refused with snapshots, and the service is not needed for that";
        unlike $error, qr/retry.?$/i, '... and Ravada does not try again by itself';
        is did(), '', '... and nothing is done';

        like failure(sub { $call->(machine('libvirt is away', $server)) }), qr/Cannot tell whether desk has snapshots/,
            "$name: refused when libvirt does not say";
        is $call->(machine(0, $away)), $name, "$name: done while the service is away";
        like "@warnings", qr/RAVADA SNAPSHOTS: cannot ask the service/, '... and the log says that it was not asked';
        is $call->(machine('libvirt error code: 42, message: no domain', $server)), $name,
            "$name: libvirt has no such machine";
    }
};

subtest 'a snapshot that is just being made' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok({ activeOperation => 'operations/1' }));
    my $domain = machine(0, $server);
    like failure(sub { $domain->spinoff }), qr/being made or used now/, 'is waited for by the user';
    is did(), '', 'and nothing is done';
};

subtest 'what has nothing to do with snapshots' => sub {
    my $domain = machine(2, $away);
    is $domain->change_hardware('memory', 0, {}), 'change memory', 'memory';
    is $domain->set_controller('network', 1, {}), 'add network',   'a network card';
    is $domain->change_hardware('disk', 1, {}),   'change disk',   'another medium in the drive';
    like failure(sub { $domain->change_hardware('disk', 7, {}) }), qr/2 snapshots/, 'a disk that nobody knows is one';
};

subtest 'SWAP volumes stay while there are snapshots' => sub {
    machine(1, $away)->clean_swap_volumes;
    is did(), '', 'with one';
    machine('libvirt is away', $away)->clean_swap_volumes;
    is did(), '', 'when nobody knows';
    machine(0, $away)->clean_swap_volumes;
    is did(), 'clean_swap_volumes', 'without one they are cleaned';
    machine(1, $away, keep_swap => 'no')->clean_swap_volumes;
    is did(), 'clean_swap_volumes', 'and where the administrator wants it so';
};

# A service whose purge does in libvirt what it should, as far as this process can see: the count is asked after it.
sub purging ($domain) {
    my $libvirt = $domain->domain;
    no warnings 'redefine';
    my $wait = \&Ravada::Snapshots::Client::wait;
    return sub ($code) {
        local *Ravada::Snapshots::Client::wait = sub (@args) { my $ended = $wait->(@args); $libvirt->{count} = 0; return $ended };
        return failure($code);
    };
}

subtest 'purge first, where the administrator wants it so' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok(operation('SUCCEEDED')));
    my $domain = machine(2, $server, while_snapshots => 'purge');
    is purging($domain)->(sub { $domain->spinoff }), 'nothing', 'it is done';
    is did(), 'spinoff', 'after the purge';
    my ($purge) = $server->asked;
    like $purge->{path}, qr/PurgeVm/, 'which was asked for';
    ok $purge->{json}{force}, 'with the protected ones';
    my ($granted) = map { decode_json(Mojo::Util::b64_decode($_ =~ tr{-_}{+/}r)) }
        (split /\./, $purge->{headers}{Authorization} =~ s/Bearer //r)[1];
    is_deeply $granted->{grants}[0]{actions}, [qw(force purge read)], 'by a token that says so';

    $domain = machine(2, $server, while_snapshots => 'purge');
    like failure(sub { $domain->spinoff }), qr/libvirt still has 2/, 'a purge that did not help is none';
    is did(), '', 'and nothing is done';

    $domain = machine(2, $away, while_snapshots => 'purge');
    like failure(sub { $domain->spinoff }), qr/could not be removed: .*cannot be reached/, 'nor is one that was not done';
    is did(), '', 'and nothing is done';
};

sub removal ($domain, $uid = $alice) {
    $ravada->remove_domain(name => 'desk', uid => $uid);
    return;
}

subtest 'removal' => sub {
    my $keep = sub { $Test::RavadaHost::DBH->do('INSERT OR IGNORE INTO domains (id, name, id_owner) VALUES (?,?,?)', undef, $id, 'desk', $alice) };
    for my $case ([ 'is purged' => 'RUNNING' ], [ 'when the purge is done at once' => 'SUCCEEDED' ]) {
        my $server = Test::Gateway->start(
            Test::Gateway->ok({ plan => { steps => [] } }),    # before it is switched off, by Ravada itself
            Test::Gateway->ok({ plan => { steps => [] } }),    # and by the machine's own remove
            Test::Gateway->ok(operation($case->[1])),
            Test::Gateway->stream([ { operation => operation('SUCCEEDED') } ]),
        );
        my $domain  = machine(3, $server);
        my $libvirt = $domain->domain;
        is purging($domain)->(sub { removal($domain) }), 'nothing', "a machine $case->[0]";
        is $libvirt->{undefined}, 4, 'with the flags that Ravada gives';
        like did(), qr/removed/, 'and removed';
        my @asked = $server->asked;
        ok $asked[0]{json}{validateOnly} && $asked[1]{json}{validateOnly}, 'it is asked before whether it can be';
        ok !$asked[2]{json}{validateOnly}, 'then it is done';
        $keep->();
    }

    my $server = Test::Gateway->start($none);
    machine(0, $server);
    is failure(sub { removal(undef) }), 'nothing', 'a machine that the service does not know is removed';
    $keep->();
    machine(0, $away);
    is failure(sub { removal(undef) }), 'nothing', 'so is one without snapshots while the service is away';
    $keep->();
};

subtest 'a removal that is refused loses nothing' => sub {
    my $plan    = Test::Gateway->ok({ plan => {} });
    my $refused = Test::Gateway->refusal(400, 'failed_precondition', 'VM_HIBERNATED', message => 'it is hibernated');
    my $failed  = Test::Gateway->ok(
        operation('FAILED', error => { code => 13, reason => 'HYPERVISOR_FAILED', message => 'libvirt failed' }));
    my %case = (
        'the service is away'         => [ undef,                          qr/cannot be reached/,  '' ],
        'it refuses'                  => [ [$refused],                     qr/it is hibernated/,   '' ],
        'it refuses later'            => [ [ $plan, $plan, $refused ],     qr/it is hibernated/,   'shutdown, shutdown' ],
        'the purge fails'             => [ [ $plan, $plan, $failed ],      qr/libvirt failed/,     'shutdown, shutdown' ],
        'the purge does not help'     => [ [ $plan, $plan, Test::Gateway->ok(operation('SUCCEEDED')) ], qr/libvirt still has 3/, 'shutdown, shutdown' ],
        'the answer is lost for good' => [ [ $plan, $plan, Test::Gateway->hang_up ], qr/cannot be reached/, 'shutdown, shutdown' ],
    );
    for my $name (sort keys %case) {
        my ($script, $expected, $done) = @{ $case{$name} };
        my $server = $script ? Test::Gateway->start(@$script) : $away;
        my $domain = machine(3, $server);
        my $error  = failure(sub { removal($domain) });
        like $error, $expected, "$name: the error says so";
        like $error, qr/\Adesk was not removed/, '... and what it means';
        unlike $error, qr/retry.?$/i, '... and Ravada does not try again by itself';
        ok !exists $domain->domain->{undefined}, '... libvirt has it as before';
        is did(), $done, '... and no disk is gone';
        ok $ravada->search_domain('desk'), '... Ravada has it, too';
    }
};

subtest 'a removal without the service, where the administrator allows it' => sub {
    my $domain  = machine(3, $away, when_unreachable => 'allow');
    my $libvirt = $domain->domain;
    is failure(sub { removal($domain) }), 'nothing', 'it is removed';
    is $libvirt->{undefined}, 4 | 2, "with libvirt's records";
    is scalar(grep { /removing desk with its snapshots/ } @warnings), 1, 'and the log says so, once';
    $Test::RavadaHost::DBH->do('INSERT INTO domains (id, name, id_owner) VALUES (?,?,?)', undef, $id, 'desk', $alice);

    my $server = Test::Gateway->start(Test::Gateway->refusal(400, 'failed_precondition', 'VM_HIBERNATED'));
    $domain = machine(3, $server, when_unreachable => 'allow');
    isnt failure(sub { removal($domain) }), 'nothing', 'a service that is there and refuses is not away';
};

subtest 'nobody else may' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok(operation('SUCCEEDED')));
    my $domain = machine(3, $server);
    like failure(sub { removal($domain, $bob) }), qr/can't remove/, "Ravada's own answer";
    like failure(sub { $domain->remove(Ravada::Auth::SQL->search_by_id($bob)) }), qr/not allowed/, 'also further in';
    is scalar($server->asked), 0, 'and the service was not asked';
    ok $ravada->search_domain('desk'), 'the machine is there';
};

subtest 'undefining at other times' => sub {
    my $domain = machine(3, $away);
    like failure(sub { $domain->domain->undefine(4) }), qr/code: 55/, 'is as ever: refused by libvirt with snapshots';
    $domain = machine(0, $away);
    $domain->domain->undefine(4);
    is $domain->domain->{undefined}, 4, 'and done without';
};

subtest 'without settings' => sub {
    my $domain = machine(2, $away);
    local $ENV{RAVADA_SNAPSHOTS_CONF} = "$folder/none";
    $hooks->{config} = undef;
    like failure(sub { $domain->spinoff }), qr/2 snapshots/, 'guards guard';
    like failure(sub { removal($domain) }), qr/desk was not removed.*missing/s, 'a machine with snapshots stays';
    ok $ravada->search_domain('desk'), '... all of it';
    $domain->domain->{count} = 0;
    is $domain->spinoff, 'spinoff', 'one without is worked with as ever';
};

sub request ($uid, %args) {
    my $request = Ravada::Request->new_request('snapshot', uid => $uid, id_domain => $id, %args);
    $ravada->process_requests;
    return $request;
}

subtest 'requests' => sub {
    my $server = Test::Gateway->start(Test::Gateway->ok(operation('SUCCEEDED', snapshot => "vms/$uuid/snapshots/snap-1")));
    my $own    = '11111111-2222-4333-8444-555555555555';
    machine(0, $server);
    my $create = request($alice, action => 'create', snapshot_name => 'n', content => 'disks', idempotency_id => $own);
    is_deeply [ $create->status, $create->error ], [ 'done', '' ], 'done';
    is decode_json($create->output)->{snapshot}, "vms/$uuid/snapshots/snap-1", 'the output names the snapshot';
    is(($server->asked)[0]{json}{requestId}, $own, "the caller's key is used");
    my ($claims) = map { decode_json(Mojo::Util::b64_decode($_ =~ tr{-_}{+/}r)) }
        (split /\./, ($server->asked)[0]{headers}{Authorization} =~ s/Bearer //r)[1];
    is_deeply $claims->{grants}, [ { vm => $uuid, actions => [qw(create read)] } ], 'with a token for this and no more';
    is $claims->{sub}, 'alice', 'in the name of the user';

    is request($alice, action => 'revert', snapshot => 'snap-1')->error, '', 'a revert';
    is_deeply [ map { @$_ } @{ $Test::RavadaHost::DBH->selectall_arrayref('SELECT command FROM requests ORDER BY id') } ],
        [qw(snapshot snapshot refresh_machine)], "is followed by a look at the machine's state";
    request($alice, action => 'remove', snapshot => "vms/00000000-0000-4000-8000-000000000000/snapshots/snap-1");
    is(($server->asked)[-1]{json}{name}, "vms/$uuid/snapshots/snap-1", "another machine's snapshot is none of this one");

    my $asked = $server->asked;
    for my $case (
        [ 'another user',         $bob,   qr/ACTION_NOT_GRANTED/, action => 'create', snapshot_name => 'n' ],
        [ 'an owner who forces',  $alice, qr/ACTION_NOT_GRANTED/, action => 'remove', snapshot => 'snap-1', force => 1 ],
        [ 'no user',              999,    qr/no user 999/,        action => 'list' ],
        [ 'no such action',       $alice, qr/cannot 'format'/,    action => 'format' ],
        [ 'no name',              $alice, qr/needs a name/,       action => 'create' ],
        [ 'no snapshot',          $alice, qr/Which snapshot/,     action => 'remove' ],
        [ 'a name that is none',  $alice, qr/not a snapshot's/,   action => 'remove', snapshot => '../x y' ],
        [ 'a scope that is none', $alice, qr/scope is one of/,    action => 'remove', snapshot => 's', scope => 'all' ],
    ) {
        my ($name, $uid, $expected, %args) = @$case;
        my $request = request($uid, %args);
        is $request->status, 'done', "$name: done";
        like $request->error, $expected, '... with an error';
    }
    is scalar($server->asked), $asked, 'and the service was not asked';

    for my $case ([ is_base => 1, 'VM_IS_BASE' ], [ is_volatile => 1, 'VM_TRANSIENT' ], [ status => 'hibernated', 'VM_HIBERNATED' ], [ vm => 'Void', 'VM_NOT_KVM' ]) {
        my ($field, $value, $reason) = @$case;
        my $before = Test::RavadaHost::row('domains', $id)->{$field};
        $Test::RavadaHost::DBH->do("UPDATE domains SET $field=? WHERE id=?", undef, $value, $id);
        like request($alice, action => 'list')->error, qr/$reason/, "refused: $reason";
        $Test::RavadaHost::DBH->do("UPDATE domains SET $field=? WHERE id=?", undef, $before, $id);
    }

    my $full = Test::Gateway->start(Test::Gateway->refusal(429, 'resource_exhausted', 'SNAPSHOT_LIMIT', message => 'no more than 100'));
    machine(0, $full);
    is request($alice, action => 'create', snapshot_name => 'n')->error, "no more than 100 (SNAPSHOT_LIMIT)\n",
        "the service's refusal is told in its words";
    machine(0, $away);
    like request($alice, action => 'list')->error, qr/cannot be reached/, 'a service that is away, too';
};

subtest 'loaded by PERL5OPT' => sub {
    # As systemd starts it: the module before the program, whose name decides.
    my $program = sub ($name, $end = '') {
        my $path = "$folder/$name";
        open my $file, '>', $path or die $!;
        print {$file} "use lib '$FindBin::Bin/lib'; use Test::RavadaHost;\n",
            'print Ravada::Snapshots::Backend->can("install") ? "loaded" : "absent", " ", ',
            '$Ravada::Request::VALID_ARG{snapshot} ? "hooked" : "bare", "\n";', "\n", $end;
        close $file or die $!;
        local $ENV{PERL5OPT} = "-I$FindBin::Bin/../lib -MRavada::Snapshots::Backend";
        return scalar qx{$^X $path 2>&1};
    };
    like $program->('rvd_back'),  qr/loaded hooked/, 'the back end is hooked before it runs';
    like $program->('rvd_front'), qr/loaded bare/,   'another program is not';
    local $ENV{PERL5OPT} = "-I$FindBin::Bin/../lib -MRavada::Snapshots::Backend";
    is scalar(qx{$^X -e 'print join ",", grep { m{Moose|Mojo|Ravada} } sort keys %INC' 2>&1}), 'Ravada/Snapshots/Backend.pm',
        'and a child in another language of the back end loads nothing else';
};

done_testing;
