"""What a run would read, looked at before anything is made: a function for each subject, one place that calls them all."""
