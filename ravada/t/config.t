use v5.36;

use File::Temp qw(tempdir);
use FindBin;
use Ravada::Snapshots::Config;
use Test::More;

my $folder = tempdir(CLEANUP => 1);

sub load ($text, %options) {
    my $file = "$folder/ravada.conf";
    open my $out, '>', $file or die "$file: $!";
    print {$out} $text;
    close $out or die "$file: $!";
    return Ravada::Snapshots::Config->load(file => $file, %options);
}

sub failure ($code) { return eval { $code->(); 1 } ? 'nothing' : "$@" }

my $config = load("# a comment\n\n kid = 2026 \ntoken_key=/etc/key with space\n", gateway => 'http://g');
is $config->get('kid'),             '2026',                'a value has no space around it';
is $config->get('token_key'),       '/etc/key with space', 'and may have some in it';
is $config->get('gateway'),         'http://g',            'what is given comes before the file';
is $config->get('while_snapshots'), 'refuse',              'the default is the careful one';

my $least = "kid = k\ntoken_key = t\n";
like failure(sub { load('kid = k') }),                             qr/'token_key' is missing/,          'what is missing';
like failure(sub { load("${least}kid = l\n") }),                   qr/line 3: kid is there twice/,      'what is there twice';
like failure(sub { load("$least\nwhile_snapshot = purge\n") }),    qr/unknown setting 'while_snapshot'/, 'a slip of the pen';
like failure(sub { load("${least}while_snapshots = perhaps\n") }), qr/one of refuse, purge/,            'a wrong choice';
like failure(sub { load("${least}path = a b\n") }),                qr/path is like/,                    'a wrong path';
like failure(sub { load("${least}what is this\n") }),              qr/line 3: not of the form/,         'a wrong line';

my $example = Ravada::Snapshots::Config->load(file => "$FindBin::Bin/../etc/ravada.conf");
is $example->get('issuer'), 'ravada', 'the example can be read';

done_testing;
