use v5.36;

# On Ravada's own classes and templates, where RAVADA_TREE names a tree of it: the methods that are wrapped are there and are
# guarded, the permissions that are asked are there, and the settings page has the anchors of the tab.

use File::Temp qw(tempdir);
use FindBin;
use Mojolicious::Plugin::RavadaSnapshots::Tab;
use Test::More;

my $tree = $ENV{RAVADA_TREE}
    or plan skip_all => 'RAVADA_TREE names no tree of Ravada, so its own classes and templates are not looked at';
-e "$tree/lib/Ravada.pm" or BAIL_OUT("RAVADA_TREE=$tree is no tree of Ravada");

my $folder = tempdir(CLEANUP => 1);

# As systemd starts the back end: the module by PERL5OPT, before a program called rvd_back that uses Ravada.
sub back_end ($code) {
    open my $out, '>', "$folder/rvd_back" or die $!;
    print {$out} "use v5.36;\nuse lib '$tree/lib';\nuse Ravada;\nuse Ravada::Front;\nuse Ravada::Auth::SQL;\n$code";
    close $out or die $!;
    local $ENV{PERL5OPT} = "-I$FindBin::Bin/../lib -MRavada::Snapshots::Backend";
    return scalar qx{cd $tree && $^X $folder/rvd_back 2>&1};
}

subtest 'the classes' => sub {
    my $said = back_end(<<'PERL');
package Test::Libvirt {
    our $COUNT = 2;
    sub new              { bless {}, shift }
    sub get_name         { 'desk' }
    sub get_uuid_string  { '6f0c2a4e-1111-4222-8333-444455556666' }
    sub num_of_snapshots { $COUNT }
}
say 'missing: ', join ',', Ravada::Snapshots::Backend::install()->missing;
say 'request: ', join ',', sort keys %{ $Ravada::Request::VALID_ARG{snapshot} };
say 'method: ', ref Ravada->can('_req_method')->(bless({}, 'Ravada'), 'snapshot');
say 'others: ', ref Ravada->can('_req_method')->(bless({}, 'Ravada'), 'remove');
my %arguments = (set_controller => ['disk', 1], remove_controller => ['disk', 0], change_hardware => ['disk', 0, {}]);
for my $method (qw(spinoff prepare_base rebase restore compact migrate restore_backup), sort keys %arguments) {
    my $domain = bless { domain => Test::Libvirt->new, readonly => 0, _data => { name => 'desk' } }, 'Ravada::Domain::KVM';
    no warnings 'redefine';
    local *Ravada::Domain::KVM::name = sub { 'desk' };
    eval { $domain->$method(@{ $arguments{$method} // ['a', 'b'] }); 1 };
    say "$method: ", (split /\n/, $@ || 'done')[0];
}
my $domain = bless { domain => Test::Libvirt->new, _data => { name => 'desk' } }, 'Ravada::Domain::KVM';
say 'swap: ', defined $domain->clean_swap_volumes ? 'cleaned' : 'kept';
say 'undefine: ', Sys::Virt::Domain->can('undefine') ? 'there' : 'gone';
PERL
    like $said, qr/^missing: $/m, 'every method is there' or diag $said;
    unlike $said, qr/RAVADA SNAPSHOTS|Prototype/, 'and nothing is amiss';
    like $said, qr/^request: action,/m, 'there is a type of request';
    like $said, qr/^method: CODE$/m,    'which the back end knows how to run';
    like $said, qr/^others: CODE$/m,    'beside its own';
    like $said, qr/^$_: desk has 2 snapshots, and .* Remove them first\.$/m, "$_ is guarded"
        for qw(spinoff prepare_base rebase restore compact migrate restore_backup set_controller remove_controller change_hardware);
    like $said, qr/^swap: kept$/m, 'SWAP volumes are kept';
};

subtest 'the interface' => sub {
    my %methods = (
        'Ravada::Auth::SQL'     => [qw(search_by_id id name is_admin can_manage_machine can_shutdown_machine can_remove_machine AUTOLOAD)],
        'Ravada::Front::Domain' => [qw(open id name type id_owner is_base is_volatile is_hibernated is_locked)],
        'Ravada::Domain'        => [qw(open)],
        'Ravada::Domain::KVM'   => [qw(remove domain is_hibernated list_volumes_info)],
        'Ravada::Request'       => [qw(open args output error status)],
        'Ravada'                => [qw(remove_domain search_domain _req_method)],
    );
    my @wanted = map { my $class = $_; map { "$class->$_" } @{ $methods{$class} } } sort keys %methods;
    my $said   = back_end(join "\n", map { my ($class, $method) = split /->/; "say '$_ ', ($class->can('$method') || $class->can('AUTOLOAD')) ? 'yes' : 'no';" } @wanted);
    like $said, qr/^\Q$_\E yes$/m, $_ for @wanted;
    like back_end('say join ",", map { defined &{"Ravada::Request::$_"} || exists $Ravada::Request::VALID_ARG{$_} ? "yes" : "no" } "refresh_machine";'),
        qr/^yes$/m, 'Ravada::Request->refresh_machine';
    open my $in, '<', "$tree/script/rvd_front" or die $!;
    my $front = do { local $/ = undef; <$in> };
    like $front, qr/_user\s*=>/,                                    'the user is in the stash as _user';
    like $front, qr/stash\(domain\s*=>\s*\$domain\)/,               'the machine is in the stash of the page';
    like $front, qr/template\s*=>\s*'main\/settings_machine'/,      'and the page has its name';
};

subtest 'the page' => sub {
    my $read;
    $read = sub ($name) {
        $name =~ s{\A/}{};
        open my $in, '<:encoding(UTF-8)', "$tree/templates/$name.html.ep" or return '';
        my $text = do { local $/ = undef; <$in> };
        return $text =~ s{^\s*%=\s*include\s+'([^']+)'.*$}{$read->($1)}gmer;
    };
    my $source = $read->('main/settings_machine');
    cmp_ok length $source, '>', 10_000, 'with all that it includes';
    my ($html, $problem) = Mojolicious::Plugin::RavadaSnapshots::Tab::insert($source,
        label => 'Snapshots', vm => 'uuid', path => '/p', token_url => '/t', refresh_url => '/r');
    is $problem, undef, 'every anchor is there, and once';
    like $html, qr/v-pills-screenshot-tab.*?v-pills-snapshots-tab.*?v-pills-base-tab/s, 'the tab comes after the screenshot';
    like $html, qr/id="v-pills-tabContent">\s*<div class="tab-pane fade" id="v-pills-snapshots"/, 'its pane is among the panes';
};

done_testing;
