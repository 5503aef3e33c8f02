package Mojolicious::Plugin::RavadaSnapshots;

# Three things beside Ravada's own pages, none of which may keep Ravada from starting: the tab in the settings page, a route
# that answers with a token, and the gateway under the same origin.

use v5.36;

use Mojo::Base 'Mojolicious::Plugin', -signatures;
use Mojo::URL;

our $VERSION = '0.1.0';

use constant {
    # Not under /css, /js, /img, /font, /login, /connect, /profile or /status.: there Ravada asks for no login.
    ROUTES   => '/snapshots-tab',
    TEMPLATE => 'main/settings_machine',
};

sub register ($self, $app, $options) {
    # An exception here would stop rvd_front: a page without a tab is better than none.
    eval { $self->_register($app, $options); 1 }
        or $app->log->error("snapshots: there is no Snapshots tab: $@");
    return $self;
}

sub _register ($self, $app, $options) {
    require Mojolicious::Plugin::RavadaSnapshots::Access;
    require Mojolicious::Plugin::RavadaSnapshots::Proxy;
    require Mojolicious::Plugin::RavadaSnapshots::Tab;
    require Ravada::Snapshots::Config;
    my %options = %{ $options // {} };
    my %mine    = map { $_ => delete $options{$_} } grep { exists $options{$_} } qw(open_domain dbh);
    my $config  = Ravada::Snapshots::Config->load(%options);
    # What is wrong with the key is said now, and not to the first user.
    $config->tokens;

    $self->{config} = $config;
    $self->{open}   = $mine{open_domain} // sub ($id) { Ravada::Front::Domain->open($id) };
    $self->{dbh}    = $mine{dbh} // sub { no warnings 'once'; $Ravada::Front::CONNECTOR->dbh };
    $self->{proxy}  = Mojolicious::Plugin::RavadaSnapshots::Proxy->new($config);

    my $routes = $app->routes;
    my $id     = [ id => qr/\d+/ ];
    $routes->post(ROUTES . '/token/:id'   => $id => sub ($c) { $self->_token($c) });
    $routes->post(ROUTES . '/refresh/:id' => $id => sub ($c) { $self->_refresh($c) });
    $routes->any($config->get('path') . '/*target' => sub ($c) { $self->_proxy($c) });
    $app->hook(before_render => sub ($c, $args) { $self->_before_render($c, $args) });
    $app->hook(after_render  => sub ($c, $output, $format) { $self->_after_render($c, $output, $format) });
    return;
}

# A token for one machine, for what its user may do to it, for a minute.
sub _token ($self, $c) {
    my ($domain, $actions, $uuid) = $self->_allowed($c) or return;
    my $tokens = $self->{config}->tokens;
    my $user   = $c->stash('_user');
    $c->res->headers->cache_control('no-store');
    $c->render(
        json => {
            token     => $tokens->mint(subject => $user->name, vm => $uuid, actions => $actions),
            expiresIn => $tokens->seconds,
            vm        => $uuid,
            actions   => $actions,
        }
    );
    return;
}

# The page has seen the machine change: Ravada's own record of it is brought up to date. Ravada makes one of such
# requests when many are made.
sub _refresh ($self, $c) {
    my ($domain) = $self->_allowed($c, 'even when it is busy') or return;
    Ravada::Request->refresh_machine(uid => $c->stash('_user')->id, id_domain => $domain->id);
    $c->render(json => {});
    return;
}

sub _proxy ($self, $c) {
    delete @{ $c->stash }{qw(mojo.session mojo.active_session)} if !$c->stash('_user');
    return $self->_refuse($c, 'SIGNED_OUT') if !$c->stash('_user');
    # A page of another site could not know the token; this is for what a browser would send along by itself.
    return $self->_refuse($c, 'NOT_SAME_ORIGIN') if $c->req->method eq 'POST' && !_same_origin($c);
    $self->{proxy}->serve($c, $c->stash('target'));
    return;
}

# All that must be so before anything is done for a user: who it is, that it is our page that asks, that the user may, that
# the machine can. Answers with the refusal by itself. A machine that the user may not see is one that there is not.
sub _allowed ($self, $c, $busy_is_fine = 0) {
    my $user = $c->stash('_user');
    # The page asks by itself as long as it is open; that does not make the session longer.
    delete @{ $c->stash }{qw(mojo.session mojo.active_session)};
    return $self->_refuse($c, 'SIGNED_OUT')      if !$user;
    return $self->_refuse($c, 'NOT_SAME_ORIGIN') if !_same_origin($c);
    my $domain = eval { $self->{open}->($c->stash('id')) };
    return $self->_refuse($c, 'VM_NOT_FOUND') if !$domain;

    my @answer = eval {
        my @actions = Mojolicious::Plugin::RavadaSnapshots::Access::actions($user, $domain);
        my $reason =
              !@actions     ? ($user->can_manage_machine($domain) ? 'ACTION_NOT_GRANTED' : 'VM_NOT_FOUND')
            : $busy_is_fine ? Mojolicious::Plugin::RavadaSnapshots::Access::never($domain)
            :                 Mojolicious::Plugin::RavadaSnapshots::Access::now($domain);
        my $uuid = $reason ? undef : Mojolicious::Plugin::RavadaSnapshots::Access::uuid($self->{dbh}->(), $domain->id);
        $reason //= 'VM_NO_UUID' if !$uuid;
        ($reason, \@actions, $uuid);
    };
    if (!@answer) {
        $c->app->log->error("snapshots: machine " . $c->stash('id') . ": $@");
        return $self->_refuse($c, 'UNAVAILABLE');
    }
    my ($reason, $actions, $uuid) = @answer;
    return $self->_refuse($c, $reason) if $reason;
    return ($domain, $actions, $uuid);
}

sub _refuse ($self, $c, $reason) {
    my $refusal = Mojolicious::Plugin::RavadaSnapshots::Access::refusal($reason);
    my $message = _translated($c, $refusal->{message});
    $c->render(
        status => $refusal->{status},
        json   => {
            error => {
                reason    => $reason,
                message   => $message,
                retryable => $refusal->{retryable} ? Mojo::JSON->true : Mojo::JSON->false,
            }
        }
    );
    return;
}

# Ravada has no tokens against forged requests, so we look where the request came from. Browsers have told for years, in
# headers that a page cannot set.
sub _same_origin ($c) {
    my $headers = $c->req->headers;
    my $site    = $headers->header('Sec-Fetch-Site');
    return 0 if defined $site && $site ne 'same-origin';
    my $origin = $headers->origin;
    return defined $site ? 1 : 0 if !defined $origin;
    my $from = Mojo::URL->new($origin)->host_port // return 0;
    # The host only: a reverse proxy may take TLS off, and then we do not know our own scheme.
    my $here = Mojo::URL->new('//' . ($headers->host // return 0))->host_port // return 0;
    return lc $from eq lc $here ? 1 : 0;
}

# The template's name is gone when the page is rendered, so it is noted here.
sub _before_render ($self, $c, $args) {
    $c->stash('snapshots.page' => 1) if ($args->{template} // '') eq TEMPLATE;
    return;
}

sub _after_render ($self, $c, $output, $format) {
    return if !delete $c->stash->{'snapshots.page'} || $format ne 'html';
    eval { $self->_insert($c, $output); 1 } or $self->_warn_once($c, "$@");
    return;
}

sub _insert ($self, $c, $output) {
    my ($user, $domain) = ($c->stash('_user'), $c->stash('domain'));
    return if !$user || !$domain || Mojolicious::Plugin::RavadaSnapshots::Access::never($domain);
    return if !Mojolicious::Plugin::RavadaSnapshots::Access::actions($user, $domain);
    my $uuid = Mojolicious::Plugin::RavadaSnapshots::Access::uuid($self->{dbh}->(), $domain->id) or return;
    my ($html, $problem) = Mojolicious::Plugin::RavadaSnapshots::Tab::insert(
        Mojo::Util::decode('UTF-8', $$output) // $$output,
        label       => _translated($c, 'Snapshots'),
        lang        => _language($c),
        vm          => $uuid,
        path        => $c->url_for($self->{config}->get('path'))->to_string,
        token_url   => $c->url_for(ROUTES . '/token/' . $domain->id)->to_string,
        refresh_url => $c->url_for(ROUTES . '/refresh/' . $domain->id)->to_string,
    );
    return $self->_warn_once($c, $problem) if !defined $html;
    $$output = Mojo::Util::encode('UTF-8', $html);
    return;
}

sub _warn_once ($self, $c, $problem) {
    $c->app->log->error("snapshots: the tab cannot be put into the settings page: $problem") if !$self->{warned}++;
    return;
}

# Ravada's own translations, where it has one; else English.
sub _translated ($c, $text) {
    my $translated = eval { $c->l($text) };
    return defined $translated && length $translated ? $translated : $text;
}

# The language that Ravada shows its pages in, as a language tag; none when it does not say.
sub _language ($c) {
    my ($language) = eval { $c->languages };
    return defined $language && $language =~ /\A[a-z]{2,3}(?:[-_@]\w+)*\z/i ? $language =~ tr{_@}{-}r : undef;
}

1;

__END__

=encoding utf8

=head1 NAME

Mojolicious::Plugin::RavadaSnapshots - the Snapshots tab in Ravada's front end

=head1 SYNOPSIS

    # /etc/rvd_front.conf
    {
        plugins => [ { 'RavadaSnapshots' => {} } ],
        ...
    }

=head1 DESCRIPTION

Loaded by that one line, with no patch to Ravada:

=over

=item *

adds a tab with the C<E<lt>ravada-snapshotsE<gt>> element to a machine's settings page, for KVM machines that are neither
bases nor volatile, and for users who may change the machine's settings. When the page does not look as expected, it stays as it
is and the log says so once;

=item *

answers C<POST /snapshots-tab/token/ID> with a token of a minute at most for exactly that machine and exactly what the user may
do (see L<Mojolicious::Plugin::RavadaSnapshots::Access>), when the request comes from a page of the same origin;

=item *

serves C</snapshots-api/...>, the gateway's calls and the element's files, under Ravada's own origin, so that neither its
Content-Security-Policy nor CORS needs a change.

=back

A refusal is JSON, C<{"error": {"reason", "message", "retryable"}}>, with the reasons C<SIGNED_OUT>, C<NOT_SAME_ORIGIN>,
C<VM_NOT_FOUND>, C<ACTION_NOT_GRANTED>, C<VM_NOT_KVM>, C<VM_IS_BASE>, C<VM_TRANSIENT>, C<VM_HIBERNATED>, C<VM_BUSY> (Ravada is
working on it), C<VM_NO_UUID>, and C<UNAVAILABLE>.

Settings are read from F</etc/ravada-snapshots/ravada.conf> (see L<Ravada::Snapshots::Config>); those in F</etc/rvd_front.conf>
come before them.

=head1 METHODS

=head2 register($app, \%options)

Called by Mojolicious. Never dies: what is wrong is written into the log, and Ravada starts without the tab. Besides the
settings of L<Ravada::Snapshots::Config>, C<open_domain> (a function from a machine's number to its record) and C<dbh> (a function
to the database's handle) can be given; by default they are Ravada's.

=cut
