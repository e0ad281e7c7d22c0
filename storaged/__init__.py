"""storaged: the agent of a storage node. Keeps images by their content and volumes as files, and serves volumes to guests."""
