package Ravada::Snapshots::Backend::Hooks;

use v5.36;

use Class::Method::Modifiers qw(install_modifier);
use Ravada::Snapshots::Backend::Guards;
use Ravada::Snapshots::Backend::Machine;
use Ravada::Snapshots::Backend::Removal;
use Ravada::Snapshots::Backend::Requests;

our $VERSION = '0.1.0';

use constant KVM => 'Ravada::Domain::KVM';

sub install ($class, $config = undef) {
    my $self = bless { config => $config, missing => [] }, $class;
    # Methods written in C have prototypes, which mean nothing to a method.
    local $SIG{__WARN__} = sub ($warning) { warn $warning if $warning !~ /\APrototype mismatch/ };
    for my $part (qw(Guards Removal Requests)) {
        my $module = "Ravada::Snapshots::Backend::$part";
        for my $hook ($module->hooks($self)) {
            my ($kind, $target, $method, $code) = @$hook;
            # A method that a version of Ravada does not have is no reason not to guard the others.
            next if eval { install_modifier($target, $kind, $method, $code); 1 };
            push @{ $self->{missing} }, "$target\::$method";
            $self->alarm("cannot wrap $target\::$method, so it knows nothing of snapshots: $@");
        }
    }
    return $self;
}

# The methods that could not be wrapped.
sub missing ($self) { return @{ $self->{missing} } }

# Read late and again after a failure: a wrong file must not keep rvd_back from starting, and is corrected without a restart.
sub config ($self) {
    return $self->{config} //= do {
        require Ravada::Snapshots::Config;
        Ravada::Snapshots::Config->load;
    };
}

# What the machine behind one of Ravada's objects has, and the service for it.
sub machine ($self, $domain, $user = undef) {
    return Ravada::Snapshots::Backend::Machine->new($self, $domain, $user);
}

sub alarm ($self, $text) {
    $text =~ s/\s+\z//;
    warn "RAVADA SNAPSHOTS: $text\n";
    return;
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend::Hooks - the methods of Ravada that are wrapped

=head1 METHODS

=head2 install($config)

Wraps every method of the three parts, and tells on STDERR which could not be.

=head2 missing

The names of the methods that could not be wrapped.

=head2 config

The L<Ravada::Snapshots::Config>. Dies when it cannot be read.

=head2 machine($domain, $user)

A L<Ravada::Snapshots::Backend::Machine> for one of Ravada's objects.

=head2 alarm($text)

Tells the administrator, in the back end's log.

=cut
