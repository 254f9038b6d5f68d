//! Placeholder.
use axum::response::Json;
pub(super) async fn document() -> Json<serde_json::Value> {
    Json(serde_json::Value::Null)
}
