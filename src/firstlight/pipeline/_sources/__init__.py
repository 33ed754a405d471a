"""Where a run gets its messages from: a service, files, recordings, memory."""
