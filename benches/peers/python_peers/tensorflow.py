"""Two matrix products around a softmax, which is what Keras runs on CPUs; as a graph and compiled by XLA."""
from . import THREADS, Call, own_cpus

own_cpus()

import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(THREADS)
tf.config.threading.set_inter_op_parallelism_threads(1)
DTYPES = {"f32": tf.float32, "f16": tf.float16, "bf16": tf.bfloat16}


def version():
    return tf.__version__


def attention(xla):
    def prepare(case, q, k, v):
        # [batch, KV heads, group, tokens, dim]: the products broadcast keys and values over the group.
        q = q.reshape(case.batch, case.kv_heads, case.group, case.q_len, case.dim)
        q, k, v = (tf.cast(tf.constant(x), DTYPES[case.dtype]) for x in (q, k[:, :, None], v[:, :, None]))
        scale = tf.cast(case.dim ** -0.5, DTYPES[case.dtype])
        allowed = tf.constant(np.tri(case.q_len, case.kv_len, dtype=bool)) if case.causal else None

        @tf.function(jit_compile=xla)
        def function(q, k, v):
            scores = tf.matmul(q * scale, k, transpose_b=True)
            if allowed is not None:
                scores = tf.where(allowed, scores, scores.dtype.min)
            return tf.matmul(tf.nn.softmax(scores), v)

        function = function.get_concrete_function(q, k, v)
        back = lambda out: tf.cast(out, tf.float32).numpy().reshape(case.batch, case.q_heads, case.q_len, case.dim)
        return Call(lambda: function(q, k, v), back)

    return prepare


def empty():
    x = tf.zeros(1)
    function = tf.function(lambda x: -x).get_concrete_function(x)
    return Call(lambda: function(x))


ROUTES = {"graph": attention(False), "XLA": attention(True)}
