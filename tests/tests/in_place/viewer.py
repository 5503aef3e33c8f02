"""Somebody who looks at a guest by SPICE. Answers each line with what the connection has been through, as JSON."""

import json
import sys

import gi

gi.require_version("SpiceClientGLib", "2.0")
from gi.repository import GLib, GObject, SpiceClientGLib  # noqa: E402

# Both classes have a `connect` of their own, which hides that of signals.
listen = GObject.Object.connect
Channel, Session = SpiceClientGLib.Channel, SpiceClientGLib.Session

seen = {"opened": [], "ended": [], "surfaces": 0, "drawn": 0}
channels = []


def count(what):
    seen[what] += 1


def event(channel, happened):
    name = type(channel).__name__
    opened = happened == SpiceClientGLib.ChannelEvent.OPENED
    seen["opened" if opened else "ended"].append(name if opened else f"{name}: {happened.value_nick}")


def appear(_session, channel):
    channels.append(channel)
    listen(channel, "channel-event", event)
    if isinstance(channel, SpiceClientGLib.DisplayChannel):
        listen(channel, "display-primary-create", lambda *_: count("surfaces"))
        listen(channel, "display-invalidate", lambda *_: count("drawn"))
    if not isinstance(channel, SpiceClientGLib.MainChannel):
        Channel.connect(channel)


def answer(_source, _condition):
    if not sys.stdin.readline():
        loop.quit()
        return False
    print(json.dumps(seen), flush=True)
    return True


session = Session(uri=f"spice+unix://{sys.argv[1]}")
listen(session, "channel-new", appear)
# Which the channels of USB redirection belong to.
devices = SpiceClientGLib.UsbDeviceManager.get(session)
loop = GLib.MainLoop()
GLib.io_add_watch(sys.stdin, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, answer)
if not Session.connect(session):
    sys.exit("no connection")
loop.run()
