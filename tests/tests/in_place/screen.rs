//! Somebody who looks at a guest by VNC (RFC 6143), and asks for the whole picture now and then.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) struct Screen {
    stream: UnixStream,
    size: [u16; 2],
    /// Bytes of a pixel.
    pixel: usize,
}

impl Screen {
    pub(crate) fn open(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut version = [0; 12];
        stream.read_exact(&mut version).unwrap();
        stream.write_all(b"RFB 003.008\n").unwrap();
        let mut count = [0; 1];
        stream.read_exact(&mut count).unwrap();
        let mut kinds = vec![0; usize::from(count[0])];
        stream.read_exact(&mut kinds).unwrap();
        assert!(kinds.contains(&1), "a password is asked for: {kinds:?}");
        stream.write_all(&[1]).unwrap();
        let mut result = [9; 4];
        stream.read_exact(&mut result).unwrap();
        assert_eq!(result, [0; 4]);
        // Others may look as well.
        stream.write_all(&[1]).unwrap();
        let mut told = [0; 24];
        stream.read_exact(&mut told).unwrap();
        let size = [u16::from_be_bytes([told[0], told[1]]), u16::from_be_bytes([told[2], told[3]])];
        let pixel = usize::from(told[4] / 8);
        let mut name = vec![0; usize::try_from(u32::from_be_bytes([told[20], told[21], told[22], told[23]])).unwrap()];
        stream.read_exact(&mut name).unwrap();
        Self { stream, size, pixel }
    }

    /// Asks for the picture over this connection, and gets one.
    pub(crate) fn update(&mut self) {
        let [width, height] = self.size.map(u16::to_be_bytes);
        self.stream.write_all(&[3, 0, 0, 0, 0, 0, width[0], width[1], height[0], height[1]]).unwrap();
        let mut head = [0; 4];
        self.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[0], 0, "not a picture: {head:?}");
        let rectangles = u16::from_be_bytes([head[2], head[3]]);
        assert!(rectangles > 0);
        for _ in 0..rectangles {
            let mut about = [0; 12];
            self.stream.read_exact(&mut about).unwrap();
            assert_eq!(about[8..], [0; 4], "raw pixels are all that was not asked for otherwise");
            let side = |at: usize| usize::from(u16::from_be_bytes([about[at], about[at + 1]]));
            let mut pixels = vec![0; side(4) * side(6) * self.pixel];
            self.stream.read_exact(&mut pixels).unwrap();
        }
    }
}
