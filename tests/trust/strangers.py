"""What touches the canary."""

TOUCH = 'touch "${CANARY:?}"'
PICKLE = b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR."
