//! gRPC over a Unix socket: a tonic client, whose server is grpcio in Python. Raw bytes without a protobuf envelope. Unary calls,
//! one at a time; in the rate phase, which is known by its stamp of 1, 16 are under way.

use std::path::PathBuf;

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, task::JoinSet};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};

use crate::{
    Failure,
    drive::{Send, stamp},
    plan::Plan,
};

const UNDER_WAY: usize = 16;

/// Bytes as they are.
#[derive(Debug, Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The client; there is no receiver in Rust.
pub(crate) struct Sender {
    runtime: Runtime,
    socket: PathBuf,
    channel: Option<Channel>,
    calls: JoinSet<Result<(), Status>>,
    message: Vec<u8>,
}

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let message = vec![7; plan.bytes];
        Ok(Self { runtime, socket: plan.dir.join("grpc"), channel: None, calls: JoinSet::new(), message })
    }
}

async fn call(channel: Channel, message: Bytes) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/forebay.Compare/Take");
    client.unary(Request::new(message), path, Raw).await.map(drop)
}

impl Send for Sender {
    fn start(&mut self) -> Result<(), Failure> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        self.channel = Some(self.runtime.block_on(endpoint.connect_with_connector(connector))?);
        Ok(())
    }

    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        stamp(&mut self.message, first, last);
        let message = Bytes::copy_from_slice(&self.message);
        let channel = self.channel.clone().ok_or("not connected")?;
        if first != 1 {
            return Ok(self.runtime.block_on(call(channel, message))?);
        }
        let calls = &mut self.calls;
        self.runtime.block_on(async {
            calls.spawn(call(channel, message));
            if calls.len() == UNDER_WAY
                && let Some(done) = calls.join_next().await
            {
                done??;
            }
            Ok(())
        })
    }

    fn last(&mut self) -> Result<(), Failure> {
        let calls = &mut self.calls;
        self.runtime.block_on(async {
            while let Some(done) = calls.join_next().await {
                done??;
            }
            Ok(())
        })
    }
}
