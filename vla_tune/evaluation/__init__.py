"""What evaluations measure of a stream: every task after every task."""
