#!/bin/sh
# The image's entry. The service starts, watches and stops the desktop itself; see `luna-workspace --help`.
exec /opt/luna/luna-workspace serve "$@"
