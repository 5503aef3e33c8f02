package Ravada::Snapshots::Backend::Requests;

# Ravada's own way of asking its back end for something: a row in the table of requests. The type is registered in the back
# end alone. In the front end it would be open to everybody who is logged in; whatever inserts a row there, the permission is
# checked here, where it is acted on.

use v5.36;

use Mojo::JSON qw(encode_json);
use Mojolicious::Plugin::RavadaSnapshots::Access;
use Ravada::Snapshots::Error;

our $VERSION = '0.1.0';

use constant COMMAND => 'snapshot';

# As in Ravada's own table: 1 is required, 2 is not.
my %ARGUMENTS = (
    uid            => 1,
    id_domain      => 1,
    action         => 1,
    snapshot       => 2,
    snapshot_name  => 2,
    description    => 2,
    content        => 2,
    scope          => 2,
    force          => 2,
    run_after      => 2,
    save_current   => 2,
    idempotency_id => 2,
);
my %ACTION = (list => \&_list, create => \&_create, revert => \&_revert, remove => \&_remove);
# Which action of a token each needs.
my %NEEDS = (list => 'read', create => 'create', revert => 'revert', remove => 'delete');
# The output is a TEXT column of 64 KiB.
use constant LONGEST_OUTPUT => 60_000;

sub hooks ($class, $hooks) {
    _declare();
    return [
        around => 'Ravada',
        _req_method => sub ($next, $ravada, $command, @rest) {
            return sub ($ravada, $request) { run($hooks, $request) } if $command eq COMMAND;
            return $ravada->$next($command, @rest);
        }
    ];
}

sub _declare () {
    no warnings 'once';
    $Ravada::Request::VALID_ARG{ +COMMAND } = {%ARGUMENTS};
    # The user is told of the outcome as of others.
    $Ravada::Request::CMD_SEND_MESSAGE{ +COMMAND } = 1;
    return;
}

# What it dies with, Ravada writes into the request's error; the output is JSON.
sub run ($hooks, $request) {
    my %args   = %{ $request->args };
    my $action = $args{action} // '';
    my $code   = $ACTION{$action} or die "A snapshot request cannot '$action'; it can: @{[sort keys %ACTION]}.\n";
    my $user   = Ravada::Auth::SQL->search_by_id($args{uid}) or die "There is no user $args{uid}.\n";
    my $domain = eval { Ravada::Domain->open($args{id_domain}) } or die "There is no machine $args{id_domain}.\n";
    my @needs  = ($NEEDS{$action}, $action eq 'remove' && $args{force} ? 'force' : ());
    _authorize($user, $domain, $_) for @needs;

    my $seconds = $hooks->config->get('wait_seconds');
    my $machine = $hooks->machine($domain, $user);
    my $client  = $machine->client([ 'read', grep { $_ ne 'read' } @needs ], patience => $seconds);
    my $output  = eval { $code->($client, $machine, \%args, $seconds) };
    if (!$output) {
        my $error = $@;
        die Ravada::Snapshots::Error->is($error) ? $error->message . ' (' . $error->reason . ")\n" : $error;
    }
    # The machine may be in another state than Ravada's record says.
    Ravada::Request->refresh_machine(uid => $user->id, id_domain => $domain->id) if $action eq 'revert';
    my $json = encode_json($output);
    die "There are too many snapshots for a request's output; ask the service itself.\n" if length $json > LONGEST_OUTPUT;
    $request->output($json);
    return;
}

# As in the front end. The machine is locked by this very request, so that is not asked.
sub _authorize ($user, $domain, $needed) {
    my %may = map { $_ => 1 } Mojolicious::Plugin::RavadaSnapshots::Access::actions($user, $domain);
    my $reason =
          !$may{$needed}          ? 'ACTION_NOT_GRANTED'
        : $domain->is_hibernated  ? 'VM_HIBERNATED'
        :                           undef;
    $reason = Mojolicious::Plugin::RavadaSnapshots::Access::never($domain) // $reason if $may{$needed};
    return if !$reason;
    die Mojolicious::Plugin::RavadaSnapshots::Access::refusal($reason)->{message} . " ($reason)\n";
}

sub _list ($client, $machine, $args, $seconds) {
    my @fields = qw(name displayName parentSnapshot isCurrent createTime content state protected);
    return { snapshots => [ map { my $snapshot = $_; +{ map { $_ => $snapshot->{$_} } grep { exists $snapshot->{$_} } @fields } }
                @{ $client->list($machine->uuid) } ] };
}

sub _create ($client, $machine, $args, $seconds) {
    my $name = $args->{snapshot_name} // die "A snapshot needs a name (snapshot_name).\n";
    return _done($client, $seconds, $client->create($machine->uuid, name => $name, _some($args, qw(description content)), _key($args)));
}

sub _revert ($client, $machine, $args, $seconds) {
    return _done($client, $seconds,
        $client->revert(_snapshot($machine, $args), _some($args, qw(run_after save_current)), _key($args)));
}

sub _remove ($client, $machine, $args, $seconds) {
    return _done($client, $seconds, $client->remove(_snapshot($machine, $args), _some($args, qw(scope force)), _key($args)));
}

sub _done ($client, $seconds, $operation) {
    my $ended = $client->wait($operation, timeout => $seconds);
    return { operation => $ended->{name}, snapshot => $ended->{snapshot}, savedSnapshot => $ended->{savedSnapshot} };
}

# By its whole name, or by its id alone. One of another machine is none of this one.
sub _snapshot ($machine, $args) {
    my $snapshot = $args->{snapshot} // die "Which snapshot? (snapshot)\n";
    my ($id) = $snapshot =~ m{(?:\A|/)([a-z0-9-]+)\z} or die "'$snapshot' is not a snapshot's name.\n";
    return 'vms/' . $machine->uuid . "/snapshots/$id";
}

sub _some ($args, @names) { return map { $_ => $args->{$_} } grep { defined $args->{$_} } @names }
sub _key ($args) { return defined $args->{idempotency_id} ? (request_id => $args->{idempotency_id}) : () }

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend::Requests - snapshots by Ravada's table of requests

=head1 SYNOPSIS

    my $request = Ravada::Request->new_request('snapshot',
        uid => $user->id, id_domain => $domain->id, action => 'create', snapshot_name => 'before exam');

=head1 DESCRIPTION

In the back end there is one more type of request, C<snapshot>. Its C<action> is C<list>, C<create> (C<snapshot_name>,
C<description>, C<content>), C<revert> (C<snapshot>, C<run_after>, C<save_current>) or C<remove> (C<snapshot>, C<scope>,
C<force>, for administrators); the other arguments are those of L<Ravada::Snapshots::Client>. C<idempotency_id>, a UUID, makes a repeat harmless.

It is run as any request: C<working>, then C<done>, with what went wrong in C<error>. On success C<output> is JSON: C<operation>,
C<snapshot> and C<savedSnapshot>, or C<snapshots>. The user of C<uid> needs the permissions that the page asks for
(L<Mojolicious::Plugin::RavadaSnapshots::Access>). After a revert Ravada's record of the machine is refreshed.

The front end does not know the type, because Ravada would let every user insert one there. A route that has checked what it must
inserts the row itself.

=head1 FUNCTIONS

=head2 hooks($hooks)

What is to be wrapped: a list of C<[kind, class, method, code]>.

=head2 run($hooks, $request)

Carries out one request.

=cut
