"""That no file and no body of a caller's, however damaged, ends in anything but a result or a clear refusal."""
