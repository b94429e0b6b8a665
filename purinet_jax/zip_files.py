"""Members of zip files, read without trusting the sizes that the file states."""

import zipfile


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Returns a member's bytes after comparing its checksum; never decompresses more than its stated size.

    Raises:
      zipfile.BadZipFile: the checksum differs, or the member is shorter than stated. A damaged member also raises
        EOFError, OSError, NotImplementedError or the decompressor's own error.
    """
    with archive.open(member) as stream:
        # `ZipFile.read` decompresses up to 2 GiB at once, whatever the stated size.
        content = stream.read(member.file_size)
    if len(content) != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} is shorter than stated")
    return content
