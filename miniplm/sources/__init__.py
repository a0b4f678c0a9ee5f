"""Source files: found by glob, opened whatever their compression, read as documents and counted rejections."""
