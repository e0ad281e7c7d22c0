"""The `skyrack` command: nouns and verbs over the SDK, nothing that a program could not do with the SDK itself."""
