package Test::RavadaHost;

# A host program with the interface of Ravada that the plugin and the hooks touch: the names of its classes and methods, its
# tables, its way of running requests. Written for these tests; nothing in it is Ravada's. A machine's `domain` is what the
# test gives it: libvirt's own object, or one that fails as it is told to.

use v5.36;

use DBI;
use Mojo::JSON qw(decode_json encode_json);

our $DBH;

sub database ($class, $file = ':memory:') {
    $DBH = DBI->connect("dbi:SQLite:dbname=$file", '', '', { RaiseError => 1, PrintError => 0 });
    $DBH->do($_) for (
        'CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, is_admin INTEGER DEFAULT 0)',
        q{CREATE TABLE domains (id INTEGER PRIMARY KEY, name TEXT, id_owner INTEGER, id_base INTEGER, vm TEXT DEFAULT 'KVM',
            is_base INTEGER DEFAULT 0, is_volatile INTEGER DEFAULT 0, status TEXT DEFAULT 'shutdown')},
        'CREATE TABLE domains_kvm (id_domain INTEGER, xml TEXT)',
        'CREATE TABLE domain_share (id_domain INTEGER, id_user INTEGER)',
        q{CREATE TABLE requests (id INTEGER PRIMARY KEY, command TEXT, args TEXT, status TEXT, error TEXT DEFAULT '',
            output TEXT, id_domain INTEGER)},
    );
    return $DBH;
}

sub row ($table, $id) {
    return $DBH->selectrow_hashref("SELECT * FROM $table WHERE id=?", undef, $id);
}

sub add ($class, $table, %row) {
    my @names = sort keys %row;
    $DBH->do("INSERT INTO $table (" . join(',', @names) . ') VALUES (' . join(',', ('?') x @names) . ')',
        undef, @row{@names});
    return $DBH->last_insert_id(undef, undef, $table, undef);
}

package Ravada::Auth::SQL {
    use v5.36;
    sub search_by_id ($class, $id) {
        my $row = Test::RavadaHost::row('users', $id) or return;
        return bless {%$row}, $class;
    }
    sub id       ($self) { return $self->{id} }
    sub name     ($self) { return $self->{name} }
    sub is_admin ($self) { return $self->{is_admin} }

    sub _owns ($self, $id) {
        my $row = Test::RavadaHost::row('domains', $id) or die "no machine $id";
        return $self->{is_admin} || $row->{id_owner} == $self->{id};
    }

    sub _shares ($self, $id) {
        return $Test::RavadaHost::DBH->selectrow_array('SELECT 1 FROM domain_share WHERE id_domain=? AND id_user=?',
            undef, $id, $self->{id});
    }
    sub can_change_settings  ($self, $id)     { return $self->_owns($id) || $self->_shares($id) }
    sub can_manage_machine   ($self, $domain) { return $self->can_change_settings(ref $domain ? $domain->id : $domain) }
    sub can_shutdown_machine ($self, $domain) { return $self->can_manage_machine($domain) }
    sub can_remove_machine   ($self, $domain) { return $self->_owns(ref $domain ? $domain->id : $domain) }
}

package Ravada::Front::Domain {
    use v5.36;
    sub open ($class, $id) {
        my $row = Test::RavadaHost::row('domains', $id) or die "ERROR: Unknown domain id: $id\n";
        return bless {%$row}, $class;
    }
    sub id            ($self) { return $self->{id} }
    sub name          ($self) { return $self->{name} }
    sub type          ($self) { return $self->{vm} }
    sub id_owner      ($self) { return $self->{id_owner} }
    sub is_base       ($self) { return $self->{is_base} }
    sub is_volatile   ($self) { return $self->{is_volatile} }
    sub is_hibernated ($self) { return $self->{status} eq 'hibernated' }

    sub is_locked ($self) {
        return $Test::RavadaHost::DBH->selectrow_array(
            q{SELECT id FROM requests WHERE id_domain=? AND status <> 'done' AND command <> 'refresh_machine'},
            undef, $self->{id});
    }
}

package Ravada::Request {
    use v5.36;
    our (%VALID_ARG, %CMD_SEND_MESSAGE);
    %VALID_ARG = (refresh_machine => { uid => 1, id_domain => 1 }, remove_domain => { uid => 1, name => 1 });

    sub new_request ($class, $command, %args) {
        my $valid = $VALID_ARG{$command} or die "Error: Unknown request '$command'";
        for my $name (keys %args) { die "Invalid argument $name" if !$valid->{$name} }
        my $id = Test::RavadaHost->add(
            'requests',
            command => $command, status => 'requested', id_domain => $args{id_domain},
            args => Mojo::JSON::encode_json(\%args)
        );
        return $class->open($id);
    }
    sub refresh_machine ($class, %args) { return $class->new_request('refresh_machine', %args) }
    sub open            ($class, $id)   { return bless { id => $id }, $class }
    sub id              ($self)         { return $self->{id} }
    sub args            ($self)         { return Mojo::JSON::decode_json($self->_field('args')) }
    sub command         ($self)         { return $self->_field('command') }
    sub status          ($self, @new)   { return $self->_field('status', @new) }
    sub error           ($self, @new)   { return $self->_field('error',  @new) }
    sub output          ($self, @new)   { return $self->_field('output', @new) }

    sub _field ($self, $field, @new) {
        $Test::RavadaHost::DBH->do("UPDATE requests SET $field=? WHERE id=?", undef, $new[0], $self->{id}) if @new;
        return Test::RavadaHost::row('requests', $self->{id})->{$field};
    }
}

package Ravada::Domain {
    use v5.36;
    use Moose::Role;

    our %LIBVIRT;    # what a machine is in libvirt, by its number

    before remove => sub ($self, $user, @) {
        die 'ERROR: remove not allowed for user ' . $user->name . "\n" if !$user->can_remove_machine($self);
        $self->shutdown_now;
    };

    sub open ($class, $id) {
        my $row = Test::RavadaHost::row('domains', $id) or return;
        return Ravada::Domain::KVM->new(row => $row, domain => $LIBVIRT{$id});
    }
    sub did      ($self, $what) { push @{ $Test::RavadaHost::DID{ $self->id } }, $what; return $what }
    sub spinoff  ($self)        { return $self->did('spinoff') }
    sub restore  ($self, $user) { return $self->did('restore') }
    sub rebase   ($self, $user, $base)         { return $self->did('rebase') }
    sub compact  ($self, $request = undef)     { return $self->did('compact') }
    sub prepare_base   ($self, $with_cd = 0)   { return $self->did('prepare_base') }
    sub restore_backup ($self, $backup)        { return $self->did('restore_backup') }
    sub clean_swap_volumes ($self)             { return $self->did('clean_swap_volumes') }
}

package Ravada::Domain::KVM {
    use v5.36;
    use Moose;

    has row    => (is => 'ro');
    has domain => (is => 'ro');
    sub remove;
    with 'Ravada::Domain';

    sub id            ($self) { return $self->row->{id} }
    sub name          ($self) { return $self->row->{name} }
    sub type          ($self) { return $self->row->{vm} }
    sub id_owner      ($self) { return $self->row->{id_owner} }
    sub is_base       ($self) { return $self->row->{is_base} }
    sub is_volatile   ($self) { return $self->row->{is_volatile} }
    sub is_hibernated ($self) { return $self->row->{status} eq 'hibernated' }

    sub migrate           ($self, $node, $request = undef)        { return $self->did('migrate') }
    sub set_controller    ($self, $name, $number = undef, $data = undef) { return $self->did("add $name") }
    sub remove_controller ($self, $name, $index = 0, @)           { return $self->did("remove $name") }
    sub change_hardware   ($self, $name, @)                       { return $self->did("change $name") }

    sub list_volumes_info ($self) {
        return map { Test::RavadaHost::Volume->new($_) } qw(disk cdrom);
    }

    sub shutdown_now ($self) {
        $self->did('shutdown');
        eval { $self->domain->destroy };
        return;
    }

    # Off, undefined, and then the disks.
    sub remove ($self, $user) {
        my @disks = eval { $self->domain->get_xml_description } =~ /<source file='([^']+)'/g;
        $self->domain->undefine(4);
        for my $disk (@disks) {
            unlink $disk or die "$disk: $!";
        }
        $Test::RavadaHost::DBH->do('DELETE FROM domains WHERE id=?', undef, $self->id);
        return $self->did('removed');
    }
}

package Test::RavadaHost::Volume {
    use v5.36;
    sub new  ($class, $device) { return bless { device => $device }, $class }
    sub info ($self) { return {%$self} }
}

package Ravada {
    use v5.36;
    sub new ($class) { return bless {}, $class }

    sub search_domain ($self, $name) {
        my ($id) = $Test::RavadaHost::DBH->selectrow_array('SELECT id FROM domains WHERE name=?', undef, $name);
        return $id ? Ravada::Domain->open($id) : undef;
    }

    sub remove_domain ($self, %request) {
        my $domain = $self->search_domain($request{name}) or return;
        my $user   = Ravada::Auth::SQL->search_by_id($request{uid});
        die "Error: user can't remove\n" if !$user->can_remove_machine($domain);
        $domain->shutdown_now;
        return $domain->remove($user);
    }

    sub _req_method ($self, $command) {
        my %methods = (
            remove_domain   => sub ($ravada, $request) { $ravada->remove_domain(%{ $request->args }) },
            refresh_machine => sub ($ravada, $request) {
                my $domain = Ravada::Domain->open($request->args->{id_domain});
                my $status = $domain->domain->is_active ? 'active' : 'shutdown';
                $Test::RavadaHost::DBH->do('UPDATE domains SET status=? WHERE id=?', undef, $status, $domain->id);
            },
        );
        return $methods{$command};
    }

    # Runs what is requested, until nothing is.
    sub process_requests ($self) {
        while (my ($id) = $Test::RavadaHost::DBH->selectrow_array(
            q{SELECT id FROM requests WHERE status='requested' ORDER BY id LIMIT 1})) {
            my $request = Ravada::Request->open($id);
            my $sub     = $self->_req_method($request->command);
            $request->status('working');
            eval { $sub->($self, $request); 1 } or $request->error("$@");
            $request->status('done');
        }
        return;
    }
}

our %DID;
$INC{'Ravada.pm'} = $INC{'Ravada/Domain/KVM.pm'} = __FILE__;

1;
