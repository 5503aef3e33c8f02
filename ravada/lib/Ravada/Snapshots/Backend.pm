package Ravada::Snapshots::Backend;

# Loaded into every Perl that inherits PERL5OPT, so this file does next to nothing by itself. The INIT block runs when the
# main program has been compiled: rvd_back has loaded Ravada's classes by then, in its own order, and has not begun to run.

use v5.36;

our $VERSION = '0.1.0';

{
    # Where the module is loaded later than that, whoever loads it calls install.
    no warnings 'void';
    INIT {
        install() if ($0 =~ m{(?:\A|/)rvd_back(?:\.pl)?\z}) && $INC{'Ravada.pm'};
    }
}

my $INSTALLED;

sub install ($config = undef) {
    require Ravada::Snapshots::Backend::Hooks;
    return $INSTALLED //= Ravada::Snapshots::Backend::Hooks->install($config);
}

1;

__END__

=encoding utf8

=head1 NAME

Ravada::Snapshots::Backend - what Ravada's back end must know about snapshots

=head1 SYNOPSIS

    # /etc/systemd/system/rvd_back.service.d/snapshots.conf
    [Service]
    Environment=PERL5OPT=-MRavada::Snapshots::Backend

=head1 DESCRIPTION

With no patch to Ravada, by wrapping methods of its classes once they are loaded:

=over

=item *

Before a KVM machine is removed its snapshots are purged, protected ones too. When that fails the removal fails, with the reason
in the request's error, and neither machine nor disk is lost (L<Ravada::Snapshots::Backend::Removal>).

=item *

Spinoff, new base, rebase, restore, compact, migration, the restore of a backup and changes of disks are refused while a machine
has snapshots, which they would destroy without a word; or, by C<while_snapshots = purge>, the snapshots are purged first
(L<Ravada::Snapshots::Backend::Guards>).

=item *

There is a request type C<snapshot> (L<Ravada::Snapshots::Backend::Requests>).

=back

What libvirt says counts: a guard asks it, and does not need the service for that. While the service cannot be reached, machines
without snapshots are worked with as ever.

=head1 FUNCTIONS

=head2 install($config)

Wraps the methods; done by itself in a process called C<rvd_back>. Without a L<Ravada::Snapshots::Config>, that of
F</etc/ravada-snapshots/ravada.conf> is read when it is first needed. A second call does nothing. Returns the
L<Ravada::Snapshots::Backend::Hooks>.

=cut
