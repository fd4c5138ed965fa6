//! Decodes the bodies of servers and proxies that compress though no request asks for it (RFC 9110 §8.4).

use std::fmt;
use std::io::Write;

use bytes::Bytes;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use super::super::MAX_MESSAGE_BYTES;

/// The bytes that are decoded at a time, which bounds what one step can expand to.
const STEP_BYTES: usize = 4 * 1024;
/// The size of brotli's buffers.
const BROTLI_BUFFER_BYTES: usize = 4 * 1024;

/// Decodes a body piece by piece. The output of one piece is bounded; whoever collects the pieces bounds their sum.
pub(super) struct ContentDecoder {
    coding: Coding,
}

enum Coding {
    Gzip(MultiGzDecoder<Vec<u8>>),
    /// `deflate` whose first byte has not arrived: a zlib stream, or without a header, as some servers send it.
    Deflate,
    Zlib(ZlibDecoder<Vec<u8>>),
    RawDeflate(DeflateDecoder<Vec<u8>>),
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
    Unknown(String),
}

impl ContentDecoder {
    /// Returns the decoder for a response; `None` if its body is not encoded.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Box<Self>> {
        let coding = headers.get(CONTENT_ENCODING)?.to_str().unwrap_or("?").trim().to_ascii_lowercase();
        let coding = match &*coding {
            "" | "identity" => return None,
            "gzip" | "x-gzip" => Coding::Gzip(MultiGzDecoder::new(Vec::new())),
            "deflate" => Coding::Deflate,
            "br" => {
                let decoder = brotli::DecompressorWriter::new(Vec::new(), BROTLI_BUFFER_BYTES);
                Coding::Brotli(Box::new(decoder))
            }
            _ => Coding::Unknown(coding),
        };
        Some(Box::new(Self { coding }))
    }

    /// Decodes the next bytes of the body. The result is empty if more bytes are needed.
    ///
    /// # Errors
    ///
    /// Fails with the reason if the bytes are invalid, expand to more than a message may have, or have an unknown
    /// coding.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Result<Bytes, String> {
        if let (Coding::Deflate, Some(first)) = (&self.coding, bytes.first()) {
            // The first byte of a zlib stream names the method in its lower half: 8 (RFC 1950).
            self.coding = if first & 0x0f == 8 {
                Coding::Zlib(ZlibDecoder::new(Vec::new()))
            } else {
                Coding::RawDeflate(DeflateDecoder::new(Vec::new()))
            };
        }
        match &mut self.coding {
            Coding::Gzip(decoder) => decode_with(decoder, MultiGzDecoder::get_mut, bytes),
            Coding::Deflate => Ok(Bytes::new()),
            Coding::Zlib(decoder) => decode_with(decoder, ZlibDecoder::get_mut, bytes),
            Coding::RawDeflate(decoder) => decode_with(decoder, DeflateDecoder::get_mut, bytes),
            Coding::Brotli(decoder) => {
                decode_with(&mut **decoder, brotli::DecompressorWriter::get_mut, bytes)
            }
            Coding::Unknown(coding) => Err(format!(
                "it has the content coding {coding:?}, which evenkeel does not decode and did not ask for"
            )),
        }
    }
}

fn decode_with<D: Write>(
    decoder: &mut D,
    output: impl Fn(&mut D) -> &mut Vec<u8>,
    bytes: &[u8],
) -> Result<Bytes, String> {
    for step in bytes.chunks(STEP_BYTES) {
        let written = decoder.write_all(step).and_then(|()| decoder.flush());
        written.map_err(|error| format!("its content coding is invalid: {error}"))?;
        if output(decoder).len() > MAX_MESSAGE_BYTES {
            return Err(format!("it is longer than {} MiB once decoded", MAX_MESSAGE_BYTES >> 20));
        }
    }
    Ok(std::mem::take(output(decoder)).into())
}

impl fmt::Debug for ContentDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentDecoder")
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::HeaderValue;

    use super::*;

    const TEXT: &[u8] = br#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#;

    fn decoder(coding: &'static str) -> Option<Box<ContentDecoder>> {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        ContentDecoder::from_headers(&headers)
    }

    fn encode(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        let write = |encoder: &mut dyn Write| encoder.write_all(text).unwrap();
        match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().unwrap()
            }
            "deflate without a header" => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().unwrap()
            }
            _ => {
                let mut encoded = Vec::new();
                let mut encoder = brotli::CompressorWriter::new(&mut encoded, 4096, 5, 22);
                write(&mut encoder);
                drop(encoder);
                encoded
            }
        }
    }

    #[test]
    fn bodies_are_decoded_at_any_chunking() {
        for (coding, encoded_as) in [
            ("gzip", "gzip"),
            ("X-GZIP", "gzip"),
            ("deflate", "deflate"),
            ("deflate", "deflate without a header"),
            ("br", "br"),
        ] {
            let encoded = encode(encoded_as, TEXT);
            for size in [1, 7, encoded.len()] {
                let mut decoder = decoder(coding).unwrap();
                let pieces = encoded.chunks(size).map(|piece| decoder.decode(piece).unwrap());
                let decoded: Vec<u8> = pieces.flatten().collect();
                assert_eq!(decoded, TEXT, "{encoded_as} in pieces of {size}");
            }
        }
    }

    #[test]
    fn part_that_was_flushed_is_decoded_at_once() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut decoder = decoder("gzip").unwrap();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            encoder.write_all(event.as_bytes()).unwrap();
            encoder.flush().unwrap();
            assert_eq!(decoder.decode(&std::mem::take(encoder.get_mut())).unwrap(), event);
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_an_error() {
        let error = |coding, bytes: &[u8]| decoder(coding).unwrap().decode(bytes).unwrap_err();
        assert!(error("gzip", b"{\"jsonrpc\":\"2.0\"}").contains("invalid"));
        assert!(error("zstd", TEXT).contains("\"zstd\""));
        assert!(error("gzip, br", TEXT).contains("\"gzip, br\""));
        assert!(decoder("identity").is_none());
        assert!(ContentDecoder::from_headers(&HeaderMap::new()).is_none());
    }

    #[test]
    fn output_is_bounded() {
        let zeros = encode("gzip", &vec![0; MAX_MESSAGE_BYTES + 1]);
        assert!(zeros.len() < MAX_MESSAGE_BYTES / 500);
        assert!(decoder("gzip").unwrap().decode(&zeros).unwrap_err().contains("16 MiB"));
    }
}
