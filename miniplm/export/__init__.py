"""A selection becomes files that other people's trainers read: documents restored from its sequences, or their token ids."""
