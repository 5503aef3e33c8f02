use v5.36;

# Every module compiles, has its pages, and each public function is on them.

use File::Find qw(find);
use FindBin;
use Perl::Critic;
use Pod::Checker;
use Test::More;

my $lib = "$FindBin::Bin/../lib";
my @modules;
find({ no_chdir => 1, wanted => sub { push @modules, $_ if /\.pm\z/ } }, $lib);
cmp_ok scalar(@modules), '>', 10, 'there are modules';

# Signatures look like prototypes to this release of perlcritic.
my $critic = Perl::Critic->new(-severity => 5, -exclude => ['ProhibitSubroutinePrototypes']);

for my $file (sort @modules) {
    my $name = $file =~ s{\A\Q$lib\E/}{}r;
    my $said = qx{$^X -I$lib -wc $file 2>&1};
    is $?, 0, "$name compiles" or diag $said;
    is $said =~ s/.*syntax OK\n//r, '', '... without a warning';

    my $checker = Pod::Checker->new(-quiet => 1);
    open my $sink, '>', \my $problems or die $!;
    $checker->parse_from_file($file, $sink);
    is $checker->num_errors, 0, '... its pages can be read' or diag $problems;

    open my $in, '<:encoding(UTF-8)', $file or die "$file: $!";
    my @lines = <$in>;
    close $in or die $!;
    cmp_ok scalar(@lines), '<=', 400, '... is not too long';
    my $text = join '', @lines;
    my %told = map { $_ => 1 } $text =~ /^=head2 (\w+)/mg;
    # "=item a, b, c" is for settings; functions have a heading each.
    my @untold = grep { !/\A_/ && !$told{$_} } $text =~ /^\s*sub (\w+)/mg;
    is_deeply \@untold, [], '... and tell of every public function';
    is_deeply [ map { "$_" } $critic->critique($file) ], [], '... perlcritic has nothing against it';
}

done_testing;
