// Folds of cloth with a sheen and a print.
float height(vec2 p) {
    float bend = p.x + 0.5 * gradient(0.8 * p + 0.1 * iTime);
    return sin(between(0, 1.5, 3.5) * bend) + 0.4 * sin(2.3 * between(0, 1.5, 3.5) * bend + p.y)
        + 0.4 * gradient(p);
}

void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.8, 2.0), e = vec2(0.05, 0);
    float h = height(p);
    vec3 normal = normalize(vec3(h - height(p + e.xy), h - height(p + e.yx), between(1, 0.05, 0.15)));
    vec2 print = p * between(2, 1.0, 3.0) + 0.15 * h;
    float check = step(0.5, fract(print.x)) + step(0.5, fract(print.y));
    colour = vec4(mix(ink(3), ink(4), 0.5 * check * step(0.4, random(5))) * lit(normal), 1);
}
