package Mojolicious::Plugin::RavadaSnapshots::Tab;

# Puts the tab into the rendered settings page. The page is Ravada's, so nothing of it is taken for granted: three anchors
# must be found, each exactly once, or the page stays as it is.

use v5.36;

use Mojo::Util qw(xml_escape);

our $VERSION = '0.1.0';

# Where the list of tabs begins, where the panes begin, and where the page ends. The tab goes after the screenshot's, or
# where there is none after the first.
my $TABS  = qr{<div\b[^>]*\bid="v-pills-tab"[^>]*>};
my $PANES = qr{<div\b[^>]*\bid="v-pills-tabContent"[^>]*>};
my $END   = qr{</body>};

sub insert ($html, %tab) {
    return (undef, 'the page has a Snapshots tab already') if $html =~ /id="v-pills-snapshots"/;
    for ([ $TABS, 'the list of tabs' ], [ $PANES, 'the panes' ], [ $END, 'the end of the page' ]) {
        my ($anchor, $what) = @$_;
        my $count = () = $html =~ /$anchor/g;
        return (undef, "$what is there $count times") if $count != 1;
    }
    my %text = (lang => '', map { $_ => xml_escape($tab{$_} // '') } keys %tab);
    # A page without this is in the browser's language.
    $text{lang} &&= qq{ lang="$text{lang}"};
    my ($link, $pane, $script) = (_link(%text), _pane(%text), _script(%text));

    my $after = $html =~ m{<a\b[^>]*\bid="v-pills-screenshot-tab"[^>]*>[^<]*</a>} ? $+[0] : undef;
    if (!defined $after) {
        $html =~ $TABS;
        $after = $+[0];
    }
    substr $html, $after, 0, $link;
    $html =~ s/($PANES)/$1$pane/;
    $html =~ s/($END)/$script$1/;
    return ($html, undef);
}

sub _link (%text) {
    return <<"HTML";

        <a class="nav-link" id="v-pills-snapshots-tab" href="#v-pills-snapshots" data-toggle="pill" role="tab" aria-controls="v-pills-snapshots" aria-selected="false">$text{label}</a>
HTML
}

# ng-non-bindable keeps AngularJS away from what users have typed.
sub _pane (%text) {
    return <<"HTML";

    <div class="tab-pane fade" id="v-pills-snapshots" role="tabpanel" aria-labelledby="v-pills-snapshots-tab" ng-non-bindable>
        <ravada-snapshots$text{lang} vm="$text{vm}" endpoint="$text{path}" token-url="$text{token_url}" refresh-url="$text{refresh_url}"></ravada-snapshots>
    </div>
HTML
}

sub _script (%text) {
    return <<"HTML";
<link rel="stylesheet" href="$text{path}/element.css">
<script type="module" src="$text{path}/element.js"></script>
HTML
}

1;

__END__

=encoding utf8

=head1 NAME

Mojolicious::Plugin::RavadaSnapshots::Tab - the Snapshots tab in the machine's settings page

=head1 FUNCTIONS

=head2 insert($html, label => $text, lang => $tag, vm => $uuid, path => $path, token_url => $url, refresh_url => $url)

The page with the tab, or undefined and the reason why it cannot be put in.

=cut
