//! rten: its runtime on a graph of one ONNX `Attention`, which `compare.py` writes.

use crate::{Call, Empty, Library, Outcome, Request};
use rten::{Model, Value};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};
use std::hint::black_box;

pub(crate) const LIBRARY: Library = Library {
    package: "rten",
    routes: &["Attention"],
    prepare: |request| Ok(Box::new(Graph::of_case(request)?)),
    empty: |empty: &Empty| {
        Ok(Box::new(Graph { model: load(&empty.model)?, inputs: vec![Tensor::from_data(&[1], vec![1.0])] }))
    },
};

struct Graph {
    model: Model,
    inputs: Vec<Tensor<f32>>,
}

impl Graph {
    fn of_case(request: &Request) -> Outcome<Self> {
        if request.dtype != "f32" {
            return Err("stores f32 only".into());
        }
        let shapes = [request.q_shape(), request.kv_shape(), request.kv_shape()];
        let tensors = request.read()?.into_iter().zip(shapes);
        let inputs = tensors.map(|(data, shape)| NdTensor::from_data(shape, data).into_dyn()).collect();
        Ok(Self { model: load(&request.model)?, inputs })
    }

    fn evaluate(&self) -> Outcome<Value> {
        let ids = self.model.input_ids().iter().copied();
        let inputs = ids.zip(self.inputs.iter().map(|tensor| tensor.view().into())).collect();
        let mut outputs = self.model.run(inputs, self.model.output_ids(), None)?;
        Ok(outputs.remove(0))
    }
}

impl Call for Graph {
    fn run(&self) -> Outcome<()> {
        black_box(self.evaluate()?);
        Ok(())
    }

    fn output(&self) -> Outcome<Vec<f32>> {
        let tensor: Tensor<f32> = self.evaluate()?.try_into()?;
        Ok(tensor.to_vec())
    }
}

fn load(path: &str) -> Outcome<Model> {
    Ok(Model::load(std::fs::read(path)?)?)
}
