Package: libravada-snapshots-perl
Section: perl
Architecture: all
Depends: perl (>= 5.36), libmojolicious-perl (>= 9.31), libcrypt-jwt-perl (>= 0.034), libcryptx-perl (>= 0.077), libclass-method-modifiers-perl (>= 2.13), libio-socket-ssl-perl
Description: snapshots of virtual machines, in Ravada and in Perl
 Ravada Snapshots takes, lists, deletes and reverts to snapshots of virtual
 machines on libvirt and KVM, for users who may do so with their own machines
 and for nobody else.
 .
 These are the modules that put it into a Ravada VDI that is installed
 already, a tab for its users and guards in its back end, and a client for
 scripts.
