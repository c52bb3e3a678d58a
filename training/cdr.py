"""CDR, the encoding of ROS 2 messages."""

import struct


class Cdr:
    """A cursor over one little-endian CDR message."""

    def __init__(self, data):
        if data[1] & 1 == 0:
            raise ValueError("big-endian CDR is not read here")
        self.data, self.at = data[4:], 0

    def take(self, fmt, align):
        self.at += -self.at % align
        value = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return value if len(value) > 1 else value[0]

    def string(self):
        n = self.take("I", 4)
        text = self.data[self.at : self.at + n - 1].decode()
        self.at += n
        return text

    def header(self):
        sec, nanosec = self.take("i", 4), self.take("I", 4)
        return sec * 10**9 + nanosec, self.string()
