package Ravada::Snapshots::Client;

use v5.36;

use Carp qw(croak);
use Crypt::PRNG qw(random_bytes rand);
use Mojo::JSON qw(false true);
use Ravada::Snapshots::Connect;
use Ravada::Snapshots::Error;
use Time::HiRes qw(sleep time);

our $VERSION = '0.1.0';

use constant {
    SNAPSHOTS  => 'ravada.snapshot.v1.SnapshotService',
    OPERATIONS => 'ravada.snapshot.v1.OperationService',
    PAGE_SIZE  => 500,
    # The most pages of one list: a bound, far above what a machine can have.
    MOST_PAGES   => 200,
    FIRST_PAUSE  => 0.2,
    LONGEST_STEP => 5,
    # A stream is opened anew after this: its token ends then anyway.
    STREAM_SECONDS => 55,
};

my %CONTENT = (
    auto   => 'SNAPSHOT_CONTENT_UNSPECIFIED',
    disks  => 'SNAPSHOT_CONTENT_DISKS',
    memory => 'SNAPSHOT_CONTENT_DISKS_AND_MEMORY',
);
my %SCOPE =
    (only => 'DELETE_SCOPE_ONLY', subtree => 'DELETE_SCOPE_SUBTREE', descendants => 'DELETE_SCOPE_DESCENDANTS');
my %RUN_AFTER =
    (recorded => 'RUN_AFTER_AS_RECORDED', running => 'RUN_AFTER_RUNNING', off => 'RUN_AFTER_OFF');
my %ENDED = map { ("OPERATION_STATE_$_" => 1) } qw(SUCCEEDED FAILED CANCELLED);

sub new ($class, %options) {
    my %mine = (attempts => 4, patience => 0);
    for my $name (keys %mine) {
        $mine{$name} = delete $options{$name} if defined $options{$name};
    }
    return bless { %mine, connect => Ravada::Snapshots::Connect->new(%options) }, $class;
}

# Reads

sub vms ($self) {
    return $self->_pages('ListVms', 'vms', {});
}

sub vm ($self, $vm) {
    return $self->_call(SNAPSHOTS, 'GetVm', { name => _vm($vm) });
}

sub list ($self, $vm) {
    return $self->_pages('ListSnapshots', 'snapshots', { parent => _vm($vm) });
}

sub get ($self, $snapshot) {
    return $self->_call(SNAPSHOTS, 'GetSnapshot', { name => $snapshot });
}

sub operation ($self, $name) {
    return $self->_call(OPERATIONS, 'GetOperation', { name => $name });
}

sub operations ($self, $vm) {
    return $self->_pages('ListOperations', 'operations', { vm => _vm($vm) }, OPERATIONS);
}

# Changes

sub create ($self, $vm, %wanted) {
    my %snapshot = (displayName => delete $wanted{name} // croak 'name is required');
    $snapshot{description} = delete $wanted{description} if defined $wanted{description};
    $snapshot{protected}   = true                        if delete $wanted{protected};
    my $content = _choice(\%CONTENT, 'content', delete $wanted{content} // 'auto');
    my %request = (parent => _vm($vm), snapshot => \%snapshot, content => $content);
    $request{quiesce} = true if delete $wanted{quiesce};
    $request{allowCrashConsistent} = true if delete $wanted{allow_crash_consistent};
    return $self->_change('CreateSnapshot', \%request, \%wanted);
}

sub update ($self, $snapshot, %wanted) {
    my %new = (name => $snapshot);
    my @paths;
    for ([ name => 'displayName' ], [ description => 'description' ], [ protected => 'protected' ]) {
        my ($ours, $theirs) = @$_;
        next if !exists $wanted{$ours};
        my $value = delete $wanted{$ours};
        $new{$theirs} = $ours eq 'protected' ? ($value ? true : false) : $value;
        push @paths, $theirs;
    }
    croak 'nothing to change: name, description or protected' if !@paths;
    $new{etag} = delete $wanted{etag} if defined $wanted{etag};
    # A field mask is a string in JSON.
    return $self->_change('UpdateSnapshot', { snapshot => \%new, updateMask => join ',', @paths }, \%wanted);
}

sub revert ($self, $snapshot, %wanted) {
    my %request = (
        name     => $snapshot,
        runAfter => _choice(\%RUN_AFTER, 'run_after', delete $wanted{run_after} // 'recorded'),
    );
    $request{saveCurrent}            = true                      if delete $wanted{save_current};
    $request{saveCurrentDisplayName} = delete $wanted{save_name} if defined $wanted{save_name};
    $request{etag}                   = delete $wanted{etag}      if defined $wanted{etag};
    return $self->_change('RevertToSnapshot', \%request, \%wanted);
}

sub remove ($self, $snapshot, %wanted) {
    my %request =
        (name => $snapshot, scope => _choice(\%SCOPE, 'scope', delete $wanted{scope} // 'only'));
    $request{force}        = true                 if delete $wanted{force};
    $request{allowMissing} = true                 if delete $wanted{allow_missing};
    $request{etag}         = delete $wanted{etag} if defined $wanted{etag};
    return $self->_change('DeleteSnapshot', \%request, \%wanted);
}

sub purge ($self, $vm, %wanted) {
    my %request = (name => _vm($vm));
    $request{force}        = true if delete $wanted{force};
    $request{allowMissing} = true if delete $wanted{allow_missing};
    return $self->_change('PurgeVm', \%request, \%wanted);
}

sub cancel ($self, $operation) {
    return $self->_call(OPERATIONS, 'CancelOperation', { name => $operation });
}

# The stream says at once when something changes; when it breaks, or whatever is in between does not let it through,
# asking again and again says so a little later.
sub wait ($self, $operation, %options) {
    my $until = time + ($options{timeout} // 600);
    my $tell  = $options{progress} // sub { };
    my $now   = ref $operation ? $operation : $self->operation($operation);
    my $pause = FIRST_PAUSE;
    while (!$ENDED{ $now->{state} // '' }) {
        $tell->($now);
        my $left = $until - time;
        Ravada::Snapshots::Error->throw(
            code      => 'deadline_exceeded',
            reason    => 'DEADLINE_EXCEEDED',
            message   => 'the operation has not ended in time; it goes on',
            operation => $now,
        ) if $left <= 0;
        my $last = $self->_watch($now->{name}, $left, $tell);
        if ($last) {
            $now   = $last;
            $pause = FIRST_PAUSE;
            next if $ENDED{ $now->{state} // '' };
        }
        sleep(_smaller($pause, $until - time)) if $until > time;
        $pause = _smaller($pause * 2, LONGEST_STEP);
        $now = $self->operation($now->{name});
    }
    $tell->($now);
    die Ravada::Snapshots::Error->from_operation($now) if $now->{state} ne 'OPERATION_STATE_SUCCEEDED';
    return $now;
}

sub request_id ($class) {
    my @octets = unpack 'C16', random_bytes(16);
    $octets[6] = $octets[6] & 0x0f | 0x40;
    $octets[8] = $octets[8] & 0x3f | 0x80;
    my $hex = join '', map { sprintf '%02x', $_ } @octets;
    return $hex =~ s/\A(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/r;
}

# What all changes share: the key by which a repeat is known for one, and what the caller may not have meant.
sub _change ($self, $method, $request, $rest) {
    $request->{requestId}    = delete $rest->{request_id} // $self->request_id;
    $request->{validateOnly} = true if delete $rest->{validate_only};
    croak 'unknown: ' . join ', ', sort keys %$rest if %$rest;
    return $self->_call(SNAPSHOTS, $method, $request);
}

sub _pages ($self, $method, $field, $request, $service = SNAPSHOTS) {
    my @all;
    my $token = '';
    for (1 .. MOST_PAGES) {
        my $page = $self->_call($service, $method, { %$request, pageSize => PAGE_SIZE, pageToken => $token });
        push @all, @{ $page->{$field} // [] };
        $token = $page->{nextPageToken} // '';
        last if $token eq '';
    }
    return \@all;
}

# Every call may be repeated: one that reads changes nothing, and one that changes carries its request id. Repeated are
# those whose answer is lost and those that say so by themselves, within the attempts; a machine or host that is busy is
# waited for as long as the caller has patience. A token that has begun all that one may is replaced once, where there is
# something to ask for another.
sub _call ($self, $service, $method, $request) {
    my $patient_until = time + $self->{patience};
    my $attempt       = 0;
    my $pause         = FIRST_PAUSE;
    my $spent         = 0;
    while (1) {
        my $answer = eval { $self->{connect}->call($service, $method, $request) };
        return $answer if $answer;
        my $error = $@;
        die $error if !Ravada::Snapshots::Error->is($error);
        next if $error->reason eq 'TOKEN_SPENT' && $self->{connect}->has_token_source && !$spent++;
        my $wait = $error->retry_after // $pause * (0.5 + rand());
        if ($error->code eq 'unavailable' && $error->retryable || $error->reason eq 'DEADLINE_EXCEEDED') {
            die $error if ++$attempt >= $self->{attempts};
        }
        elsif (!$error->retryable || time + $wait > $patient_until) {
            die $error;
        }
        sleep(_smaller($wait, LONGEST_STEP));
        $pause = _smaller($pause * 2, LONGEST_STEP);
    }
}

# Follows an operation by one stream. Returns the last that was told; nothing when the stream could not be had.
sub _watch ($self, $name, $left, $tell) {
    my $last;
    my $news = sub ($message) {
        $last = $message->{operation} // return;
        $tell->($last);
    };
    my $seconds = _smaller($left, STREAM_SECONDS);
    # How it ended does not matter: what was not told is asked for.
    $self->{connect}->stream(OPERATIONS, 'WatchOperation', { name => $name }, $seconds, $news);
    return $last;
}

sub _vm ($vm) {
    $vm =~ s{\Avms/}{};
    croak "'$vm' is not a machine's UUID" if $vm !~ /\A[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\z/;
    return 'vms/' . lc $vm;
}

sub _choice ($choices, $what, $wanted) {
    return $choices->{$wanted} // croak "$what is one of " . join(', ', sort keys %$choices) . ", not '$wanted'";
}

sub _smaller ($one, $other) { return $one < $other ? $one : $other }

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Client - the snapshot service from Perl

=head1 SYNOPSIS

    my $client = Ravada::Snapshots::Client->new(
        url   => 'http://127.0.0.1:7480',
        token => sub { $tokens->mint(subject => 'alice', vm => $uuid, actions => [qw(read create revert delete)]) },
    );
    my $operation = $client->wait($client->create($uuid, name => 'before exam'));
    say $_->{displayName} for @{ $client->list($uuid) };
    $client->wait($client->revert($operation->{snapshot}, save_current => 1));

=head1 DESCRIPTION

One POST with JSON a call (the Connect protocol), through the gateway. What goes out and comes in is the JSON of the messages
in C<proto/proto/ravada/snapshot/v1>: references to hashes with names such as C<displayName>; a field that has its default
value may be absent. A machine is named by its UUID or as C<vms/UUID>, a snapshot as C<vms/UUID/snapshots/ID>, an operation as
C<operations/UUID>.

Every method dies with a L<Ravada::Snapshots::Error> when the service refuses or cannot be reached, and with a plain string
when it was called wrongly. Calls block. The process may fork between calls.

A call whose answer was lost, or that was answered with C<unavailable>, is repeated up to C<attempts> times in all, with
pauses that grow or that the service asks for. One that was refused with C<TOKEN_SPENT> is repeated once, by the next token of
the function that gives them. That is safe also for changes: each carries a C<request_id>, by which the
service knows a repeat.

=head1 METHODS

=head2 new(%options)

=over

=item url

Required. The gateway's address.

=item token

Required. A bearer token, or a function that answers with one. It is asked at each attempt, because tokens are short-lived.

=item ca, cert, key

Files, for a gateway with TLS: who signed its certificate, and a certificate of one's own.

=item timeout, connect_timeout

Seconds that one call may take (20) and that connecting may take (5).

=item attempts

How often a call is tried in all when its answer is lost (4).

=item patience

Seconds to wait for a machine or a host that is busy (0).

=back

=head2 vms

The machines the token may read: a reference to a list.

=head2 vm($vm)

One machine (C<GetVm>), with C<capabilities>: what can be asked of it now, and why not.

=head2 list($vm)

Its snapshots, parents before children: a reference to a list.

=head2 get($snapshot)

One snapshot.

=head2 create($vm, name => $text, ...)

Takes a snapshot. C<description>, C<protected>, C<quiesce>; C<content> is C<auto>, C<disks> or C<memory>. Of a machine that runs,
C<auto> is its disks alone where the host can take them live. With C<allow_crash_consistent> a live snapshot is taken even where
C<quiesce> cannot be had; its C<consistency> tells. As all changes it takes
C<request_id> (by default a new one) and C<validate_only> (the answer's C<plan> says what would be done, and nothing is), and
answers with the operation, which goes on: see C<wait>.

=head2 update($snapshot, ...)

Sets those of C<name>, C<description> and C<protected> that are given. With C<etag>, only if nobody else was faster.

=head2 revert($snapshot, ...)

Takes the machine back. C<save_current> takes a snapshot of the present first, named C<save_name>; C<run_after> is C<recorded>,
C<running> or C<off>; C<etag>.

=head2 remove($snapshot, ...)

Deletes. C<scope> is C<only>, C<subtree> or C<descendants>; C<force> takes protected ones too; C<allow_missing>; C<etag>.

=head2 purge($vm, ...)

Deletes every snapshot of a machine that is going away. C<force>, C<allow_missing>.

=head2 cancel($operation)

Asks for an operation to be stopped.

=head2 operation($name)

An operation as it is now.

=head2 operations($vm)

The operations on a machine, newest first: a reference to a list.

=head2 wait($operation, timeout => $seconds, progress => sub ($operation) { ... })

Follows an operation (its name, or what a change has answered) to its end and returns it as it is then. Dies with its error
when it failed or was cancelled, and with C<DEADLINE_EXCEEDED> when it has not ended within C<timeout> (600 seconds); it goes
on then. C<progress> is called at each change.

=head2 request_id

A new idempotency key: a random UUID.

=cut
