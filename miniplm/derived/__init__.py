"""Derived sets: sequences made of others once, in shards, for all students that want them: encoded anew, or written by the teacher."""
