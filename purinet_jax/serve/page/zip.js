// Zip archives of files that are already compressed (APPNOTE.TXT 6.3, method 0, names in UTF-8).

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

// Little-endian integers, given as [size in bytes, value] pairs.
function integers(...fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  let position = 0;
  for (const [size, value] of fields) for (let i = 0; i < size; i++) bytes[position++] = Math.floor(value / 2 ** (8 * i));
  return bytes;
}

/** Returns an archive of files, each { name, blob }; throws RangeError if they have more than 4 GiB together. */
export async function zip(files, now = new Date()) {
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const encoded = new TextEncoder().encode(name);
    const crc = checksum(new Uint8Array(await blob.arrayBuffer()));
    const common = [
      [2, 20], [2, 0x0800], [2, 0], [2, time], [2, date], [4, crc], [4, blob.size], [4, blob.size],
      [2, encoded.length], [2, 0],
    ];
    const head = integers([4, 0x04034b50], ...common);
    const entry = integers([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]);
    parts.push(head, encoded, blob);
    directory.push(entry, encoded);
    offset += head.length + encoded.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  if (offset + size > 0xffffffff) throw new RangeError("more than 4 GB; download them one by one");
  const count = files.length;
  const end = integers([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
