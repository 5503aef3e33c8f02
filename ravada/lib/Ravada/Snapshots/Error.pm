package Ravada::Snapshots::Error;

use v5.36;

use Scalar::Util qw(blessed);

use overload '""' => sub ($self, @) { $self->message }, bool => sub (@) { 1 }, fallback => 1;

our $VERSION = '0.1.0';

# The code of a Connect error by the HTTP status of an answer that carries no Connect error: a proxy in between made it.
my %BY_STATUS = (
    400 => 'internal',
    401 => 'unauthenticated',
    403 => 'permission_denied',
    404 => 'unimplemented',
    429 => 'unavailable',
    502 => 'unavailable',
    503 => 'unavailable',
    504 => 'unavailable',
);

# google.rpc.Code by its number, as an operation's error has it.
my @BY_NUMBER = qw(
    ok canceled unknown invalid_argument deadline_exceeded not_found already_exists permission_denied
    resource_exhausted failed_precondition aborted out_of_range unimplemented internal unavailable data_loss
    unauthenticated
);

sub new ($class, %fields) {
    my $self = bless {
        code        => 'unknown',
        reason      => '',
        message     => 'unknown error',
        metadata    => {},
        retry_after => undef,
        retryable   => 0,
        http_status => undef,
        operation   => undef,
        %fields,
    }, $class;
    return $self;
}

sub throw ($class, %fields) {
    die $class->new(%fields);
}

sub transport ($class, $message, %fields) {
    return $class->new(
        code      => 'unavailable',
        reason    => 'TRANSPORT',
        message   => "the snapshot service cannot be reached: $message",
        retryable => 1,
        %fields,
    );
}

sub from_connect ($class, $error, $status = undef) {
    my ($info, $retry) = ({}, undef);
    for my $detail (@{ _array($error->{details}) }) {
        my $debug = ref $detail->{debug} eq 'HASH' ? $detail->{debug} : {};
        $info  = $debug if ($detail->{type} // '') eq 'google.rpc.ErrorInfo';
        $retry = $debug if ($detail->{type} // '') eq 'google.rpc.RetryInfo';
    }
    my ($seconds) = ($retry ? $retry->{retryDelay} // '' : '') =~ /\A([0-9.]+)s\z/;
    return $class->new(
        code        => $error->{code}    // 'unknown',
        message     => $error->{message} // 'the snapshot service refused without a message',
        reason      => $info->{reason}   // '',
        metadata    => ref $info->{metadata} eq 'HASH' ? $info->{metadata} : {},
        retry_after => $seconds,
        retryable   => $retry ? 1 : 0,
        http_status => $status,
    );
}

sub from_status ($class, $status, $message) {
    my $code = $BY_STATUS{$status} // 'unknown';
    return $class->new(
        code        => $code,
        reason      => 'HTTP_' . $status,
        message     => "the snapshot service's gateway was not the one that answered: $status $message",
        http_status => $status,
        retryable   => $code eq 'unavailable' ? 1 : 0,
    );
}

sub from_operation ($class, $operation) {
    my $error     = $operation->{error} // {};
    my $cancelled = ($operation->{state} // '') eq 'OPERATION_STATE_CANCELLED';
    return $class->new(
        code      => $cancelled ? 'canceled' : $BY_NUMBER[ $error->{code} // 2 ] // 'unknown',
        reason    => $error->{reason}    // ($cancelled ? 'CANCELLED'                : ''),
        message   => $error->{message}   // ($cancelled ? 'it was stopped on request' : 'the operation failed'),
        metadata  => $error->{metadata}  // {},
        retryable => $error->{retryable} ? 1 : 0,
        operation => $operation,
    );
}

sub is ($class, $thing) {
    return blessed($thing) && $thing->isa($class) ? 1 : 0;
}

sub code        ($self) { return $self->{code} }
sub reason      ($self) { return $self->{reason} }
sub message     ($self) { return $self->{message} }
sub metadata    ($self) { return $self->{metadata} }
sub retry_after ($self) { return $self->{retry_after} }
sub retryable   ($self) { return $self->{retryable} }
sub http_status ($self) { return $self->{http_status} }
sub operation   ($self) { return $self->{operation} }

sub _array ($value) { return ref $value eq 'ARRAY' ? $value : [] }

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Error - why the snapshot service refused, or why it was not reached

=head1 SYNOPSIS

    eval { $client->create($uuid, name => 'before exam'); 1 } or do {
        my $error = $@;
        die $error unless Ravada::Snapshots::Error->is($error);
        say $error->reason, ': ', $error->message;
    };

=head1 DESCRIPTION

Every method of L<Ravada::Snapshots::Client> dies with one of these. In a string it is its message.

=head1 METHODS

=head2 new(%fields)

Makes one from its fields, named as the accessors below.

=head2 throw(%fields)

As C<new>, and dies with it.

=head2 transport($message)

For a connection that failed: code C<unavailable>, reason C<TRANSPORT>, retryable.

=head2 from_connect(\%error, $status)

From the JSON of a Connect error (C<code>, C<message>, C<details>) and the HTTP status.

=head2 from_status($status, $message)

From an HTTP answer that carries no Connect error: something in front of the gateway answered.

=head2 from_operation(\%operation)

From an operation that ended FAILED or CANCELLED.

=head2 is($thing)

Whether something that was caught is one of these.

=head2 code

The code in Connect's spelling: C<not_found>, C<failed_precondition>, C<unavailable>, ...

=head2 reason

The reason for programs, one of those in docs/errors.md, such as C<VM_BUSY>. Of this side are C<TRANSPORT> (no connection),
C<DEADLINE_EXCEEDED> (no answer in time) and C<HTTP_...> (somebody else answered). Empty when none was given.

=head2 message

A sentence for people.

=head2 metadata

A reference to a hash of facts about this case.

=head2 retry_after

Seconds after which asking again may help; undefined when the service did not say.

=head2 retryable

Whether the same request may succeed later without anybody changing anything.

=head2 http_status

The HTTP status, where there was an answer.

=head2 operation

The operation that failed, as a hash; undefined where none had begun.

=cut
