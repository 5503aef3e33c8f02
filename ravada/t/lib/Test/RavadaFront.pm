package Test::RavadaFront;

# A front end with the interface of Ravada's that the plugin touches: a session, the user in the stash, a settings page of the
# name and with the anchors of Ravada's, a configuration file that is Perl. Nothing in it is Ravada's.

use v5.36;

use Mojolicious;
use Test::RavadaHost;

# The page has these three anchors; a test leaves one out.
# The language that Mojolicious::Plugin::I18N has chosen.
our $LANGUAGE = 'en';
our %ANCHOR = (
    tabs  => '<div class="nav flex-column" id="v-pills-tab" role="tablist">',
    panes => '<div class="tab-content" id="v-pills-tabContent">',
    end   => '</body>',
);

package Ravada::Front {
    use v5.36;
    our $CONNECTOR = bless {}, __PACKAGE__;
    sub dbh ($self) { return $Test::RavadaHost::DBH }
}

sub app ($class, $config_file) {
    my $app = Mojolicious->new(secrets => ['test']);
    $app->log->level('fatal');
    # As Ravada does: first the file, whose plugins are loaded at once, then everything else.
    $app->plugin(Config => { file => $config_file, default => {} });
    $app->helper(languages => sub ($c) { return $LANGUAGE });
    $app->helper(l => sub ($c, $text) { return $text eq 'Snapshots' ? "Instant\x{e0}nies" : $text });
    $app->hook(
        before_routes => sub ($c) {
            $c->res->headers->content_security_policy(
                q{default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'self'});
            return if $c->req->url->path =~ m{\A/login};
            my $user = $c->session('user') ? Ravada::Auth::SQL->search_by_id($c->session('user')) : undef;
            $c->session(expiration => 300) if $user;
            $c->stash(_user => $user);
            $c->render(status => 401, data => '<html><body>log in</body></html>', format => 'html') if !$user;
        }
    );
    my $routes = $app->routes;
    $routes->get('/login/:id' => sub ($c) { $c->session(user => $c->stash('id'))->render(text => 'hello') });
    $routes->get('/' => sub ($c) { $c->render(text => 'the list of machines') });
    $routes->get(
        '/machine/manage/:id' => sub ($c) {
            my $domain = Ravada::Front::Domain->open($c->stash('id'));
            $c->stash(domain => $domain, USER => $c->stash('_user'), anchor => \%ANCHOR);
            $c->render(template => 'main/settings_machine', format => 'html');
        }
    );
    push @{ $app->renderer->classes }, __PACKAGE__;
    return $app;
}

1;

__DATA__

@@ main/settings_machine.html.ep
<!DOCTYPE html>
<html><head><meta charset="utf-8"></head><body>
<h1>caf&eacute; &#9749; <%= $domain->name %></h1>
<%== $anchor->{tabs} %>
    <a class="nav-link active" id="v-pills-actions-tab" href="#v-pills-actions">Actions</a>
    <a class="nav-link" id="v-pills-screenshot-tab" href="#v-pills-screenshot">Screenshot</a>
    <a class="nav-link" id="v-pills-share-tab" href="#v-pills-share">Share</a>
</div>
<%== $anchor->{panes} %>
    <div class="tab-pane" id="v-pills-screenshot">a picture</div>
</div>
<script>
// A small stand-in for Bootstrap's tabs.
document.addEventListener('click', (event) => {
  const tab = event.target.closest('.nav-link');
  if (tab) {
    event.preventDefault();
    for (const pane of document.querySelectorAll('.tab-pane')) pane.classList.toggle('active', '#' + pane.id === tab.getAttribute('href'));
  }
});
</script>
<style>.tab-pane { display: none } .tab-pane.active { display: block }</style>
<%== $anchor->{end} %>
</html>
