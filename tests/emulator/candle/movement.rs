//! What moves values: to the bit, but where they are added up.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::both::{ALL, FLOATS, both, numbers, views};

fn indices(count: usize, below: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let values: Vec<u32> = (0..count).map(|i| ((i * 31 + 5) % below) as u32).collect();
    Tensor::from_vec(values, count, device)?.to_dtype(dtype)
}

#[test]
fn copies_of_views() {
    for dtype in ALL {
        for view in 0..4 {
            both("contiguous", 0.0, |device| views(17, 60, 1, dtype, device)?[view].contiguous());
        }
        both("three dimensions", 0.0, |device| {
            numbers(6 * 10 * 14, 3, dtype)?.to_device(device)?.reshape((6, 10, 14))?.permute((2, 0, 1))?.contiguous()
        });
        for dim in 0..2 {
            both("cat", 0.0, |device| {
                let all = views(8, 8, 1, dtype, device)?;
                Tensor::cat(&all, dim)
            });
        }
        both("stack", 0.0, |device| Tensor::stack(&views(5, 9, 1, dtype, device)?, 1));
        both("pad", 0.0, |device| views(5, 9, 1, dtype, device)?[1].pad_with_zeros(1, 2, 3));
        both("repeat", 0.0, |device| views(5, 9, 1, dtype, device)?[1].repeat((2, 3)));
    }
}

#[test]
fn selections() {
    for dtype in ALL {
        for index in [DType::U32, DType::U8, DType::I64] {
            for view in 0..3 {
                for dim in 0..2 {
                    both("index_select", 0.0, |device| {
                        let ids = indices(25, if dim == 0 { 14 } else { 37 }, index, device)?;
                        views(14, 37, 1, dtype, device)?[view].contiguous()?.index_select(&ids, dim)
                    });
                }
                both("gather", 0.0, |device| {
                    let ids = indices(14 * 5, 37, index, device)?.reshape((14, 5))?;
                    views(14, 37, 1, dtype, device)?[view].contiguous()?.gather(&ids, D::Minus1)
                });
            }
        }
    }
}

#[test]
fn additions_by_index() {
    for dtype in FLOATS {
        for index in [DType::U32, DType::I64] {
            both("index_add", 16.0, |device| {
                let ids = indices(25, 14, index, device)?;
                views(14, 37, 1, dtype, device)?[0].index_add(&ids, &views(25, 37, 2, dtype, device)?[0], 0)
            });
            both("scatter_add", 16.0, |device| {
                let ids = indices(14 * 20, 37, index, device)?.reshape((14, 20))?;
                views(14, 37, 1, dtype, device)?[0].scatter_add(&ids, &views(14, 20, 2, dtype, device)?[0], 1)
            });
        }
    }
}

#[test]
fn sorted() {
    for dtype in [DType::F32, DType::F64, DType::U32] {
        both("arg_sort", 0.0, |device| {
            let values: Vec<f64> = (0..6 * 50).map(|i| ((i * 7919 + 13) % 512) as f64).collect();
            let x = Tensor::from_vec(values, (6, 50), device)?.to_dtype(dtype)?;
            x.arg_sort_last_dim(true)
        });
    }
}
