package Test::Stage;

# Real guests under a real libvirt with the real services, by the workspace's program `stage`. It ends when its stdin is
# closed, so also when this process dies.

use v5.36;

use Cwd qw(abs_path);
use FindBin;
use IPC::Open2 qw(open2);
use Mojo::JSON qw(decode_json);

sub start ($class, @guests) {
    my $root   = abs_path("$FindBin::Bin/../..");
    my $target = $ENV{CARGO_TARGET_DIR} // "$root/target";
    my $stage  = "$target/debug/stage";
    die "there is no $stage: cargo build --workspace\n" if !-x $stage;
    my $pid  = open2(my $out, my $in, $stage, @guests);
    my $line = <$out> // do {
        waitpid $pid, 0;
        die "the stage could not be set: its exit is $?\n";
    };
    return bless { %{ decode_json($line) }, pid => $pid, owner => $$, in => $in, out => $out }, $class;
}

sub guest ($self, $name) {
    my ($guest) = grep { $_->{name} eq $name } @{ $self->{guests} };
    return $guest // die "no guest $name\n";
}

# What the guest itself says: the letters on its disk and in its RAM. With one, writes it first.
sub say ($self, $name, $letter = undef) {
    my @command = ($self->{say}, $self->guest($name)->{serial}, defined $letter ? "w$letter" : 'r');
    open my $pipe, '-|', @command or die "$command[0]: $!";
    my $line = <$pipe> // '';
    close $pipe or die "the guest $name does not answer\n";
    return { $line =~ /(\w+)=(\S+)/g };
}

sub virsh ($self, @arguments) {
    open my $pipe, '-|', 'virsh', '-q', '-c', $self->{libvirt}, @arguments or die "virsh: $!";
    my @lines = grep { /\S/ } <$pipe>;
    close $pipe or die "virsh @arguments failed\n";
    chomp @lines;
    return map { s/\A\s+|\s+\z//gr } @lines;
}

# The snapshots inside a qcow2 image, as qemu-img lists them.
sub tags ($self, $disk) {
    open my $pipe, '-|', 'qemu-img', 'info', '-U', '--output=json', $disk or die "qemu-img: $!";
    my $json = decode_json(do { local $/ = undef; <$pipe> });
    close $pipe or die "qemu-img cannot read $disk\n";
    return map { $_->{name} } @{ $json->{snapshots} // [] };
}

sub stop ($self) {
    return if !$self->{pid} || $self->{owner} != $$;
    close delete $self->{in};
    waitpid delete $self->{pid}, 0;
    return;
}

sub DESTROY ($self) {
    local ($., $@, $!, $?);
    $self->stop;
    return;
}

1;
