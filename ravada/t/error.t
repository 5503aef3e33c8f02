use v5.36;

use Test::More;
use Ravada::Snapshots::Error;

my $class = 'Ravada::Snapshots::Error';

my $error = $class->from_connect(
    {
        code    => 'aborted',
        message => 'another operation is changing the machine',
        details => [
            { type => 'google.rpc.RetryInfo', debug => { retryDelay => '1.500s' } },
            {
                type  => 'google.rpc.ErrorInfo',
                debug => { reason => 'VM_BUSY', metadata => { operation => 'operations/1' } }
            },
        ],
    },
    409
);
is "$error", 'another operation is changing the machine', 'in a string it is its message';
is_deeply [ map { $error->$_ } qw(code reason retry_after retryable http_status) ],
    [qw(aborted VM_BUSY 1.500 1 409)], 'what Connect tells is read';
is $error->metadata->{operation}, 'operations/1', 'the metadata, too';

my $poor = $class->from_connect({}, 500);
is_deeply [ map { $poor->$_ } qw(code reason retryable) ], [ 'unknown', '', 0 ], 'an error without anything is one';
is_deeply $class->from_connect({ details => 'x' })->metadata, {}, 'and so is one of the wrong form';

my $proxy = $class->from_status(502, 'Bad Gateway');
is_deeply [ map { $proxy->$_ } qw(code reason retryable) ], [qw(unavailable HTTP_502 1)],
    'an answer of somebody else says whether to ask again';
ok !$class->from_status(404, 'Not Found')->retryable, 'or not to';

my $failed = $class->from_operation(
    { state => 'OPERATION_STATE_FAILED', error => { code => 9, reason => 'VM_HIBERNATED', message => 'no' } });
is_deeply [ map { $failed->$_ } qw(code reason message) ], [qw(failed_precondition VM_HIBERNATED no)],
    'an operation that failed says why';
is $class->from_operation({ state => 'OPERATION_STATE_CANCELLED' })->reason, 'CANCELLED', 'one that was stopped, too';

eval { $class->throw(reason => 'X') };
ok $class->is($@), 'what was thrown is one of them';
ok !$class->is('text') && !$class->is(undef) && !$class->is({}), 'nothing else is';
ok $class->new(message => ''), 'it is true even without a message';

done_testing;
