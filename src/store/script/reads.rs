//! Reads that must see one moment: a MULTI, or, where the server has no memory for one, `lua/reads.lua`.

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, RedisError, Value};

use crate::store::script::{READS, evalsha, is_aborted, run};

/// The reads of one moment, in the order of their replies.
#[derive(Debug, Default)]
pub(in crate::store) struct Reads {
    keys: Vec<String>,
    /// Of each: the command, and the words after its key.
    words: Vec<Vec<Vec<u8>>>,
}

impl Reads {
    /// Adds `command` of `key`.
    pub(in crate::store) fn add<const N: usize>(
        &mut self,
        command: &str,
        key: String,
        words: [&[u8]; N],
    ) {
        let mut all = vec![command.as_bytes().to_vec()];
        all.extend(words.into_iter().map(<[u8]>::to_vec));
        self.keys.push(key);
        self.words.push(all);
    }

    /// Makes them.
    pub(in crate::store) async fn query<T: FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<T, RedisError> {
        let value = match self.transaction().query_async(connection).await {
            // Nothing was executed. A server without memory refuses any MULTI.
            Err(error) if is_aborted(&error) => self.scripted(connection).await?,
            other => other?,
        };
        Ok(redis::from_redis_value(value)?)
    }

    fn transaction(&self) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(self.keys.len());
        pipeline.atomic();
        for (key, words) in self.keys.iter().zip(&self.words) {
            let mut words = words.iter();
            let mut cmd = redis::Cmd::new();
            cmd.arg(words.next()).arg(key);
            for word in words {
                cmd.arg(word);
            }
            pipeline.add_command(cmd);
        }
        pipeline
    }

    async fn scripted(&self, connection: &mut MultiplexedConnection) -> Result<Value, RedisError> {
        let mut cmd = evalsha(&READS, &self.keys);
        for words in &self.words {
            cmd.arg(words.len());
            for word in words {
                cmd.arg(word);
            }
        }
        run(connection, &cmd).await
    }
}
